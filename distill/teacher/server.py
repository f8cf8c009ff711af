"""The sockets of a teacher: one thread, one epoll, all connections.

The model's threads hand their answers over through a queue and an eventfd. Invariant: nothing here waits for a client,
and what a client does, or leaves undone, ends by a deadline.
"""

import errno
import logging
import os
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from distill.oip import ErrorAnswer, encode
from distill.teacher.batching import Job
from distill.teacher.buffers import Buffers
from distill.teacher.connection import Connection, Doing
from distill.teacher.http_head import MAX_HEAD_BYTES, Answer, Head, HttpError
from distill.teacher.service import Service
from edl_collective.coord.clock import Clock

logger = logging.getLogger(__name__)

BACKLOG = 1024
ACCEPT_AT_ONCE = 64
SWEEP_S = 0.5
#: a server that leaves looks this often whether it is done
LEAVING_SWEEP_S = 0.05
#: after it was asked to leave: requests that come in this time are answered, for students may not have heard
GRACE_S = 1.0
#: it leaves before the end of the grace when nothing has come for this long
QUIET_S = 0.4
#: a connection that has been idle for so long makes room for another one at the limit
IDLE_S = 5.0
#: connections above the limit that are told so; beyond, they are closed without a word
TOLD_ABOVE_LIMIT = 64
_BUSY = frozenset({Doing.BODY, Doing.WAITING, Doing.SENDING})


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take."""

    max_connections: int = 1024
    max_memory_bytes: int = 1024 * 1024 * 1024
    idle_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0


class Server:
    """Serves `service` on `listener`. `run` on one thread; `post` and `leave` from any."""

    def __init__(
        self,
        listener: socket.socket,
        service: Service,
        clock: Clock,
        limits: Limits,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.buffers = Buffers(limits.max_memory_bytes)
        self.scratch = memoryview(bytearray(MAX_HEAD_BYTES))
        self.idle_timeout_s = limits.idle_timeout_s
        self._listener = listener
        self._service = service
        self._clock = clock
        self._limits = limits
        self._tls = tls
        self._connections: dict[int, Connection] = {}
        self._posted: deque[Callable[[], None]] = deque()
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        #: monotonic, since when it leaves; None while it serves
        self._leaving_since: float | None = None
        self._last_question_s = 0.0
        self._bell_lock = threading.Lock()
        self._stopped = False
        self._closed = False
        self._accepts_again_s: float | None = None
        service.connections = lambda: len(self._connections)

    def run(self) -> None:
        """Serve until `leave` is done or `stop`."""
        self._listener.setblocking(False)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        next_sweep_s = 0.0
        try:
            while not self._stopped:
                sweep_s = SWEEP_S if self._leaving_since is None else LEAVING_SWEEP_S
                ready = self._epoll.poll(sweep_s)
                self.catch_up()
                for number, events in ready:
                    self._dispatch(number, events)
                now = self._clock.monotonic_s()
                if now >= next_sweep_s:
                    self._sweep(now)
                    next_sweep_s = now + sweep_s
        finally:
            self._close()

    def post(self, call: Callable[[], None], *, ring: bool = True) -> None:
        """Have `call` run on the server's thread; without `ring`, when it wakes up anyway."""
        with self._bell_lock:  # a batch may end after the server has: its number may then be another file's
            if not self._closed:
                self._posted.append(call)
                if ring:
                    os.eventfd_write(self._bell, 1)

    def leave(self) -> None:
        """Answer what there is, refuse what comes after a moment, then let `run` end. Again: end at once."""
        self.post(self._leave)

    def stop(self) -> None:
        """Let `run` end now."""
        self.post(self._stop)

    # ---- what connections need (connection.Host) -----------------------------------------------------------------

    def now_s(self) -> float:
        return self._clock.monotonic_s()

    def admit(self, head: Head) -> Answer | None:
        try:
            self._service.check(head)
        except HttpError as error:
            return self._marked(Answer(error.status, (encode(ErrorAnswer(error.text)),), closes=error.closes))
        return None

    def handle(self, connection: Connection, head: Head, body: memoryview) -> Answer | None:
        self._last_question_s = self._clock.monotonic_s()

        def done(answer: Answer) -> None:
            answer = self._marked(answer)
            connection.send_at_once(
                answer, lambda out: self.post(lambda: connection.answer(answer, out), ring=bool(out))
            )

        outcome = self._service.handle(head, body, done)
        if isinstance(outcome, Answer):
            return self._marked(outcome)
        connection.on_gone = lambda: _cancel(outcome)
        return None

    def watch(self, connection: Connection, events: int) -> None:
        self._epoll.modify(connection.number, events)

    def closed(self, connection: Connection) -> None:
        self._connections.pop(connection.number, None)
        self._epoll.unregister(connection.number)

    def catch_up(self) -> None:
        while self._posted:
            self._posted.popleft()()

    def sent(self, status: int, size_bytes: int) -> None:
        self._service.engine.stats.sent(status, size_bytes)

    def received(self, size_bytes: int) -> None:
        self._service.engine.stats.received_bytes += size_bytes

    # ---- the loop ------------------------------------------------------------------------------------------------

    def _dispatch(self, number: int, events: int) -> None:
        if number == self._bell:
            os.eventfd_read(self._bell)
        elif number == self._listener.fileno():
            self._accept()
        elif number in self._connections:
            self._connections[number].ready(events)

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            self._welcome(sock)

    def _pause(self, error: OSError) -> None:
        """Too many open files: leave new connections in the backlog until the next sweep."""
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            raise error
        logger.error("cannot accept connections: %s; raise the limit of open files (ulimit -n)", error)
        self._epoll.unregister(self._listener.fileno())
        self._accepts_again_s = self._clock.monotonic_s() + SWEEP_S

    def _welcome(self, sock: socket.socket) -> None:
        if len(self._connections) >= self._limits.max_connections:
            self._make_room()
        above = len(self._connections) - self._limits.max_connections
        if above >= TOLD_ABOVE_LIMIT:
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        connection = Connection(self, sock)
        self._connections[connection.number] = connection
        self._epoll.register(connection.number, select.EPOLLIN)
        if above >= 0 and self._tls is None:
            connection.refuse(503, f"there are {self._limits.max_connections} connections: raise --max-connections")
        elif above >= 0:
            connection.close()

    def _make_room(self) -> None:
        """Close the connection that has been of no use for longest: who only holds them must not keep others out."""
        idle = min((c for c in self._connections.values() if c.idle), key=lambda c: c.deadline_s, default=None)
        if idle is not None and self.now_s() + self.idle_timeout_s - idle.deadline_s >= IDLE_S:
            idle.close()

    def _sweep(self, now_s: float) -> None:
        for connection in [c for c in self._connections.values() if c.deadline_s <= now_s]:
            connection.expire()
        if self._accepts_again_s is not None and now_s >= self._accepts_again_s:
            self._accepts_again_s = None
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        if self._leaving_since is not None:
            self._go_on_leaving(now_s, now_s - self._leaving_since)

    # ---- leaving -------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        if self._leaving_since is not None:
            self._stop()
            return
        self._leaving_since = self._last_question_s = self._clock.monotonic_s()
        self._service.leaving = True

    def _go_on_leaving(self, now_s: float, since_s: float) -> None:
        busy = any(connection.doing in _BUSY for connection in self._connections.values())
        self._service.refusing = since_s >= GRACE_S
        quiet = now_s - self._last_question_s >= QUIET_S or self._service.refusing
        if quiet and not busy:
            self._stopped = True
        elif since_s >= self._limits.drain_timeout_s:
            logger.warning("left with requests unanswered after --drain-timeout %g s", self._limits.drain_timeout_s)
            self._stopped = True

    def _stop(self) -> None:
        self._stopped = True

    def _marked(self, answer: Answer) -> Answer:
        """Answers of a server that leaves tell the client to go."""
        return answer if self._leaving_since is None else replace(answer, closes=True)

    def _close(self) -> None:
        for connection in list(self._connections.values()):
            connection.close()
        self._listener.close()
        self._epoll.close()
        with self._bell_lock:
            self._closed = True
            os.close(self._bell)


def _cancel(job: Job) -> None:
    job.cancelled = True
