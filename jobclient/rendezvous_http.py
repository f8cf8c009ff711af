"""The HTTP server on a node's loopback that Horovod's C++ HTTPStore talks to, for all jobs of the node.

Requests are /r/<job>/<worker>/<token>/<generation>:0/<scope>/<key>; the token admits one worker of one job. A GET whose
key is not there yet is held: the C++ client has no time-out, so nobody polls. The client retries any status but 200 and
404 three times and then aborts its process, which is what a stranger may do.
"""

import asyncio
import logging
import socket
from typing import Any, Protocol

import httptools

from edl_collective.coord.auth import same
from jobclient.job_proxy import WAITING, Answer, Waiting

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
#: a rendezvous of N workers on a node opens some N^2 connections in a burst; 5 or 128 drop SYNs, which costs seconds
BACKLOG = 4096
#: a value has 136 bytes for each other member
MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_URL_BYTES = 1024
#: of a request that was refused for its size: read to its end, up to here
MAX_DROPPED_BYTES = 64 * 1024 * 1024

ACCEPT_AT_ONCE = 256
READ_BYTES = 64 * 1024
PAUSE_S = 0.1

_REASONS = {200: b"OK", 400: b"Bad Request", 403: b"Forbidden", 404: b"Not Found", 413: b"Content Too Large"}


class Keys(Protocol):
    """What a job answers; jobclient.rendezvous_proxy.JobProxy is one."""

    def get(
        self, worker: str, generation: int, scope: str, key: str, ticket: "Connection"
    ) -> bytes | Waiting | None: ...

    def put(
        self, worker: str, generation: int, scope: str, key: str, value: bytes
    ) -> "list[Answer[Connection]] | Waiting": ...

    def drop(self, ticket: "Connection") -> None: ...

    def token(self, worker: str) -> str: ...


def rendezvous_address(port: int, job: str, worker: str, token: str, generation: int) -> str:
    """For HOROVOD_GLOO_RENDEZVOUS_ADDR; the client appends ":0/<scope>/<key>" when the port is "0"."""
    return f"{HOST}:{port}/r/{job}/{worker}/{token}/{generation}"


class RendezvousServer:
    """Serves the jobs that are added, on one port of the loopback."""

    def __init__(self) -> None:
        self._jobs: dict[str, Keys] = {}
        self._listener: socket.socket | None = None
        self._loop = asyncio.get_running_loop()
        #: every read goes here: a buffer of its own for each costs more system calls than the request itself
        self.buffer = memoryview(bytearray(READ_BYTES))
        self._watched: set[Connection] = set()
        self._writing: set[Connection] = set()
        self.port = 0

    async def start(self) -> int:
        """Listen on a free port; returns it. Raises OSError."""
        self._listener = socket.create_server((HOST, 0), backlog=BACKLOG)
        self._listener.setblocking(False)
        # Inherited by the connections: the acknowledgement of a request travels with its answer.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        self._loop.add_reader(self._listener.fileno(), self._accept)
        self.port = self._listener.getsockname()[1]
        return self.port

    async def close(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        for connection in [*self._watched, *self._writing]:
            connection.close()

    def add(self, job: str, keys: Keys) -> None:
        self._jobs[job] = keys

    def remove(self, job: str) -> None:
        self._jobs.pop(job, None)

    def admit(self, job: str, worker: str, token: str) -> Keys | None:
        """The keys of `job` if `token` is that of `worker`."""
        keys = self._jobs.get(job)
        return keys if keys is not None and same(token, keys.token(worker)) else None

    # File numbers, not sockets: for a socket that it does not know, the selector composes an error that describes it,
    # which costs more than the rest of the request.

    def watch(self, connection: "Connection", number: int) -> None:
        """Read on when more comes, or the client leaves."""
        if connection not in self._watched:
            self._watched.add(connection)
            self._loop.add_reader(number, connection.read)

    def watch_writing(self, connection: "Connection", number: int) -> None:
        """Write on when the client has read."""
        self._writing.add(connection)
        self._loop.add_writer(number, connection.write)

    def unwatch(self, connection: "Connection", number: int) -> None:
        if connection in self._watched:
            self._watched.discard(connection)
            self._loop.remove_reader(number)
        if connection in self._writing:
            self._writing.discard(connection)
            self._loop.remove_writer(number)

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(ACCEPT_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            sock.setblocking(False)
            Connection(self, sock).read()

    def _pause(self, error: OSError) -> None:
        """Too many open files: leave new connections in the backlog until some have closed."""
        logger.error("rendezvous server: %s; raise the limit of open files (ulimit -n)", error)
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._accept)


class Connection:
    """One connection of a worker, which is one request.

    Plain sockets, not asyncio transports: most requests are complete when they are accepted, so they are read, answered
    and closed without ever being registered with the event loop, at a fraction of the cost (docs/decisions/005).
    We close first, which leaves the client's port free.
    """

    __slots__ = ("_body", "_held_by", "_out", "_parser", "_refused", "_server", "_size", "_sock", "_url")

    def __init__(self, server: RendezvousServer, sock: socket.socket) -> None:
        self._server = server
        #: None once closed
        self._sock: socket.socket | None = sock
        #: None once closed: it holds our methods, and only the garbage collector ends such a circle
        self._parser: Any = httptools.HttpRequestParser(self)
        self._held_by: Keys | None = None
        self._url = b""
        self._body: list[bytes] = []
        self._size = 0
        #: what is left of the reply, empty before there is one
        self._out: list[memoryview] = []
        #: answered before all of it came: what follows is read and dropped, for a close with data unread is a reset,
        #: which can overtake the answer
        self._refused = False

    # ---- the socket ----------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Take what has arrived; watch for more unless the request was answered."""
        while self._sock is not None:
            try:
                size = self._sock.recv_into(self._server.buffer)
            except (BlockingIOError, InterruptedError):
                self._server.watch(self, self._sock.fileno())
                return
            except OSError:
                size = 0  # reset by the client: the same as its leaving
            if not size:
                self.close()
                return
            if self._refused:
                self._drop(size)
                continue
            try:
                self._parser.feed_data(self._server.buffer[:size])
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                self._reply(400, b"")

    def write(self) -> None:
        """Send what is left of the reply, then close."""
        if self._sock is None:
            return
        try:
            # The close that follows the last byte sends what MSG_MORE holds back: answer and end are one packet.
            self._sent(self._sock.sendmsg(self._out, (), socket.MSG_MORE))
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()  # the client is gone; its next request comes on another connection
            return
        if self._out:
            self._server.watch_writing(self, self._sock.fileno())
        elif self._refused:
            self._sock.shutdown(socket.SHUT_WR)
        else:
            self.close()

    def _drop(self, size_bytes: int) -> None:
        self._size += size_bytes
        if self._size > MAX_DROPPED_BYTES:
            self.close()

    def _sent(self, size_bytes: int) -> None:
        while self._out and size_bytes >= len(self._out[0]):
            size_bytes -= len(self._out.pop(0))
        if size_bytes:
            self._out[0] = self._out[0][size_bytes:]

    def close(self) -> None:
        if self._sock is None:
            return
        self._server.unwatch(self, self._sock.fileno())
        self._sock.close()
        self._sock = self._parser = None
        if self._held_by is not None:
            self._held_by.drop(self)
            self._held_by = None

    # ---- httptools ------------------------------------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > MAX_URL_BYTES:
            self._refuse()

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            self._refuse()
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._sock is not None and not self._out and not self._refused:
            self._handle()

    def _refuse(self) -> None:
        """Too large: 413, once, whatever else comes."""
        if not self._refused:
            self._refused = True
            self._reply(413, b"")

    # ---- requests -------------------------------------------------------------------------------------------------

    def _handle(self) -> None:
        parts = self._url.decode("ascii", "replace").split("/", 7)
        if len(parts) != 8 or parts[1] != "r":
            return self._reply(404, b"")
        _, _, job, worker, token, place, scope, key = parts
        generation = place.removesuffix(":0")
        keys = self._server.admit(job, worker, token)
        if keys is None:
            logger.warning("refused a rendezvous request for worker %s of job %s: wrong token", worker[:64], job[:64])
            return self._reply(403, b"")
        if not generation.isdecimal():
            return self._reply(400, b"")
        return self._serve(keys, worker, int(generation), scope, key)

    def _serve(self, keys: Keys, worker: str, generation: int, scope: str, key: str) -> None:
        method = self._parser.get_method()
        if method == b"GET":
            value = keys.get(worker, generation, scope, key, self)
            if value is WAITING:
                self._held_by = keys
            elif value is None:
                self._reply(404, b"")
            else:
                self.answer(value)
        elif method == b"PUT":
            answers = keys.put(worker, generation, scope, key, b"".join(self._body))
            if isinstance(answers, Waiting):
                return
            self.answer(b"")
            for answer in answers:
                answer.ticket.answer(answer.value)
        elif method == b"DELETE":
            self.answer(b"")  # the generation's keys vanish together
        else:
            self._reply(400, b"")

    def answer(self, value: bytes | None) -> None:
        """Reply 200 with `value`, 404 for None; nothing if the client is gone."""
        self._held_by = None
        self._reply(404 if value is None else 200, value or b"")

    def _reply(self, status: int, value: bytes) -> None:
        if self._sock is not None and not self._out:
            head = b"HTTP/1.1 %d %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
            self._out = [memoryview(head % (status, _REASONS[status], len(value))), memoryview(value)]
            self.write()
