"""The HTTP server on a node's loopback that Horovod's C++ HTTPStore talks to, for all jobs of the node.

Requests are /r/<job>/<worker>/<token>/<generation>:0/<scope>/<key>; the token admits one worker of one job. A GET whose
key is not there yet is held: the C++ client has no time-out, so nobody polls. The client retries any status but 200 and
404 three times and then aborts its process, which is what a stranger may do.
"""

import asyncio
import logging
from typing import Protocol

import httptools

from edl_collective.coord.auth import same
from jobclient.job_proxy import HELD, Answer, Held

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
#: a rendezvous of N workers on a node opens some N^2 connections in a burst; 5 or 128 drop SYNs, which costs seconds
BACKLOG = 4096
#: a value has 136 bytes for each other member
MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_URL_BYTES = 1024

_REASONS = {200: b"OK", 400: b"Bad Request", 403: b"Forbidden", 404: b"Not Found", 413: b"Content Too Large"}


class Keys(Protocol):
    """What a job answers; jobclient.rendezvous_proxy.JobProxy is one."""

    def get(self, worker: str, generation: int, scope: str, key: str, ticket: "Connection") -> bytes | Held | None: ...

    def put(
        self, worker: str, generation: int, scope: str, key: str, value: bytes
    ) -> "list[Answer[Connection]] | Held": ...

    def drop(self, ticket: "Connection") -> None: ...

    def token(self, worker: str) -> str: ...


def rendezvous_address(port: int, job: str, worker: str, token: str, generation: int) -> str:
    """For HOROVOD_GLOO_RENDEZVOUS_ADDR; the client appends ":0/<scope>/<key>" when the port is "0"."""
    return f"{HOST}:{port}/r/{job}/{worker}/{token}/{generation}"


class RendezvousServer:
    """Serves the jobs that are added, on one port of the loopback."""

    def __init__(self) -> None:
        self._jobs: dict[str, Keys] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self.port = 0

    async def start(self) -> int:
        """Listen on a free port; returns it. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), HOST, 0, backlog=BACKLOG)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()

    def add(self, job: str, keys: Keys) -> None:
        self._jobs[job] = keys

    def remove(self, job: str) -> None:
        self._jobs.pop(job, None)

    def admit(self, job: str, worker: str, token: str) -> Keys | None:
        """The keys of `job` if `token` is that of `worker`."""
        keys = self._jobs.get(job)
        return keys if keys is not None and same(token, keys.token(worker)) else None

    def opened(self, connection: "Connection") -> None:
        self._connections.add(connection)

    def closed(self, connection: "Connection") -> None:
        self._connections.discard(connection)


class Connection(asyncio.Protocol):
    """One connection of a worker: usually one request."""

    __slots__ = ("_body", "_held_by", "_parser", "_server", "_size", "_transport", "_url")

    def __init__(self, server: RendezvousServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._held_by: Keys | None = None
        self._url = b""
        self._body: list[bytes] = []
        self._size = 0

    # ---- asyncio --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.opened(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._server.closed(self)
        if self._held_by is not None:
            self._held_by.drop(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(400)

    # ---- httptools ------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url, self._body, self._size = b"", [], 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > MAX_URL_BYTES:
            self._refuse(413)

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            self._refuse(413)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._handle()

    # ---- requests -------------------------------------------------------------------------------------------------

    def _handle(self) -> None:
        parts = self._url.decode("ascii", "replace").split("/", 7)
        if len(parts) != 8 or parts[1] != "r":
            return self._refuse(404)
        _, _, job, worker, token, place, scope, key = parts
        generation = place.removesuffix(":0")
        keys = self._server.admit(job, worker, token)
        if keys is None:
            logger.warning("refused a rendezvous request for worker %s of job %s: wrong token", worker[:64], job[:64])
            return self._refuse(403)
        if not generation.isdecimal():
            return self._refuse(400)
        return self._serve(keys, worker, int(generation), scope, key)

    def _serve(self, keys: Keys, worker: str, generation: int, scope: str, key: str) -> None:
        method = self._parser.get_method()
        if method == b"GET":
            value = keys.get(worker, generation, scope, key, self)
            if value is HELD:
                self._held_by = keys
            elif value is None:
                self._reply(404, b"")
            else:
                self.answer(value)
        elif method == b"PUT":
            answers = keys.put(worker, generation, scope, key, b"".join(self._body))
            if isinstance(answers, Held):
                return
            self.answer(b"")
            for answer in answers:
                answer.ticket.answer(answer.value)
        elif method == b"DELETE":
            self.answer(b"")  # the generation's keys vanish together
        else:
            self._refuse(400)

    def answer(self, value: bytes) -> None:
        """Reply 200 with `value`; nothing if the client is gone."""
        self._held_by = None
        self._reply(200, value)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _refuse(self, status: int) -> None:
        self._reply(status, b"")
        if self._transport is not None:
            self._transport.close()

    def _reply(self, status: int, value: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            head = b"HTTP/1.1 %d %s\r\nContent-Length: %d\r\n\r\n" % (status, _REASONS[status], len(value))
            self._transport.write(head + value)
