"""The HTTP endpoint of a node: the logs of its workers, metrics, and whether it is there.

Served by uvicorn on the JobClient's own event loop, which no file may block: they are read in threads. A log is found
by the names of a job and a worker only, both checked, and no link is followed, so that no request leaves the log
directory. It changes nothing and shows nothing without a token.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from distill.exposition import CONTENT_TYPE
from edl_collective.coord.auth import ClusterKey, same
from edl_collective.coord.paths import check_name
from jobclient.http_limits import LimitedHttp
from jobclient.node_metrics import NodeSight, node_lines
from jobclient.process_metrics import process_lines

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
    """GET /health; with `Authorization: Bearer TOKEN` GET /metrics and /logs/{job}/{worker}?offset=&limit= (bytes).

    TOKEN: one of those that the JobServer's interface knows or, for a log, that of this log alone, as a JobServer
    sends it. `state.sight` of the result is to return the node as it is; until it is set there are no metrics.
    """
    tokens = (key.read_only_token, key.api_token)

    async def health(_: Request) -> Response:
        return JSONResponse({"node": node, "ok": True})

    async def logs(request: Request) -> Response:
        job, worker = request.path_params["job"], request.path_params["worker"]
        if not _authorised(request, (key.log_token(node, job, worker), *tokens)):
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

    async def metrics(request: Request) -> Response:
        if not _authorised(request, tokens):
            return _error(401, "send the API token as 'Authorization: Bearer TOKEN'")
        sight: NodeSight | None = app.state.sight()
        if sight is None:
            return _error(503, f"node {node} is not registered yet")
        text = await asyncio.to_thread(_metrics, sight, log_dir)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    app = Starlette(routes=[Route("/health", health), Route("/metrics", metrics), Route("/logs/{job}/{worker}", logs)])
    app.state.sight = lambda: None
    return app


def _metrics(sight: NodeSight, log_dir: Path) -> str:
    """May block for as long as the file system of the logs does."""
    there = next(path for path in (log_dir, *log_dir.parents) if path.is_dir())
    disk = shutil.disk_usage(there)
    return "\n".join((*node_lines(sight, disk.total, disk.free), *process_lines(), ""))


class NodeApi:
    """The endpoint from `start` to `close`; `port` is the one that was bound."""

    def __init__(self, app: Starlette, address: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Binds at once. `app`: of `make_app`; `tls`: None for plain HTTP.

        Raises OSError if the port is taken or the address not ours.
        """
        family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        self._socket = socket.create_server(where[:2], family=family)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app, http=LimitedHttp, log_config=None, access_log=False, lifespan="off", ws="none", interface="asgi3"
        )
        config.load()
        config.ssl = tls
        self._server = _Server(config)
        self._app = app

    def show(self, sight: Callable[[], NodeSight]) -> None:
        """Answer for metrics with what `sight` returns."""
        self._app.state.sight = sight

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
