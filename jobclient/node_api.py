"""The HTTP endpoint of a node: the logs of its workers, and whether it is there.

Served by uvicorn on the JobClient's own event loop, which no file may block: they are read in threads. A log is found
by the names of a job and a worker only, both checked, and no link is followed, so that no request leaves the log
directory. It changes nothing and shows nothing without a token.
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edl_collective.coord.auth import ClusterKey, same
from edl_collective.coord.paths import check_name
from jobclient.http_limits import LimitedHttp

DEFAULT_LIMIT_BYTES = 64 * 1024
MAX_LIMIT_BYTES = 1024 * 1024
#: where the next read of a log has to begin
NEXT_OFFSET_HEADER = "X-EDL-Next-Offset"
#: of a number of bytes: no file has more
_MAX_DIGITS = 18
_NO_LOG = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}


def log_path(log_dir: Path, job: str, worker: str) -> Path:
    """The log of a worker. Raises ValueError for names that no job or worker can have."""
    return log_dir / check_name("job", job) / f"{check_name('worker', worker)}.log"


def make_app(log_dir: Path, key: ClusterKey, node: str) -> Starlette:
    """GET /health, and GET /logs/{job}/{worker}?offset=&limit= (bytes) with `Authorization: Bearer TOKEN`.

    TOKEN: that of this log alone, as a JobServer sends it, or one of those that the JobServer's interface knows.
    """

    async def health(_: Request) -> Response:
        return JSONResponse({"node": node, "ok": True})

    async def logs(request: Request) -> Response:
        job, worker = request.path_params["job"], request.path_params["worker"]
        if not _authorised(request, (key.log_token(node, job, worker), key.read_only_token, key.api_token)):
            return _error(401, "send the API token as 'Authorization: Bearer TOKEN'")
        try:
            path = log_path(log_dir, job, worker)
            offset = _count(request, "offset", 0)
            limit = min(_count(request, "limit", DEFAULT_LIMIT_BYTES), MAX_LIMIT_BYTES)
        except ValueError as error:
            return _error(400, str(error))
        try:
            data = await asyncio.to_thread(_read, path, offset, limit)
        except OSError as error:
            if error.errno not in _NO_LOG:
                raise
            return _error(404, f"node {node} has no log of worker {path.stem} of job {path.parent.name}")
        headers = {NEXT_OFFSET_HEADER: str(offset + len(data))}
        return Response(data, media_type="text/plain; charset=utf-8", headers=headers)

    return Starlette(routes=[Route("/health", health), Route("/logs/{job}/{worker}", logs)])


class NodeApi:
    """The endpoint from `start` to `close`; `port` is the one that was bound."""

    def __init__(self, app: Starlette, address: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Binds at once. `tls`: None for plain HTTP. Raises OSError if the port is taken or the address not ours."""
        family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        self._socket = socket.create_server(where[:2], family=family)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app, http=LimitedHttp, log_config=None, access_log=False, lifespan="off", ws="none", interface="asgi3"
        )
        config.load()
        config.ssl = tls
        self._server = _Server(config)

    async def serve(self) -> None:
        """Serve until `close`."""
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            self._socket.close()

    def close(self) -> None:
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the JobClient's own decide when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _authorised(request: Request, tokens: tuple[str, ...]) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and any(same(given, token) for token in tokens)


def _count(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS:
        raise ValueError(f"{name} is {text[:_MAX_DIGITS]!r}: it must be a number of bytes")
    return int(text)


def _read(path: Path, offset: int, limit: int) -> bytes:
    """Bytes of a log. Raises OSError, with an errno of _NO_LOG for what is none: a link, a directory, a pipe.

    A job may put what it likes where its log was; whoever reads its log is not to read another file instead.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "not a file", str(path))
    with open(descriptor, "rb") as file:
        file.seek(min(offset, status.st_size))  # a file system has its own idea of what cannot be
        return file.read(limit)


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)
