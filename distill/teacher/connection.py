"""One connection of a client: receives requests into buffers, sends answers from where they lie.

Invariants: bytes of a request are received once, where the model reads them; a buffer goes back only when the answer
has left, for a model may answer with memory of its input; an answer that comes before the whole request is followed by
reading the rest of it, since a close with data unread is a reset, which can overtake the answer.
"""

import logging
import select
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Protocol

from distill.oip import ErrorAnswer, encode
from distill.teacher.buffers import ALIGNMENT, Buffer, Buffers
from distill.teacher.http_head import END, MAX_HEAD_BYTES, Answer, Head, HttpError, parse_head

logger = logging.getLogger(__name__)

#: wake for this much of a body, not for each packet (SO_RCVLOWAT)
WAKE_BYTES = 1024 * 1024
#: of a request that was refused before its end: read and dropped, up to here
MAX_DROPPED_BYTES = 256 * 1024 * 1024
#: slower than this, at any time of it, a body is given up; and so is the taking of an answer, on the whole
SLOWEST_BYTES_PER_S = 256 * 1024
HEAD_TIMEOUT_S = 10.0
DROP_TIMEOUT_S = 10.0
#: buffers of one sendmsg
_PARTS = 64
_NOTHING = memoryview(bytearray())
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_AGAIN = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Doing(Enum):
    """What a connection is at."""

    HANDSHAKE = "handshake"
    HEAD = "head"
    BODY = "body"
    WAITING = "waiting"
    SENDING = "sending"
    DROPPING = "dropping"
    CLOSED = "closed"


class Host(Protocol):
    """What a connection needs of its server."""

    buffers: Buffers
    scratch: memoryview
    idle_timeout_s: float

    def now_s(self) -> float: ...

    def admit(self, head: Head) -> Answer | None:
        """Refuse a request for what its head says. None: its body may come."""

    def handle(self, connection: "Connection", head: Head, body: memoryview) -> Answer | None:
        """Answer, or None: `connection.answer` will be called."""

    def watch(self, connection: "Connection", events: int) -> None: ...

    def closed(self, connection: "Connection") -> None: ...

    def catch_up(self) -> None:
        """Take over the answers that replicas have sent on their own."""

    def sent(self, status: int, size_bytes: int) -> None: ...

    def received(self, size_bytes: int) -> None: ...


class Connection:
    """A client's connection; all methods but `send_at_once` run on the server's thread."""

    __slots__ = (
        "_body",
        "_body_since_s",
        "_buffer",
        "_closes",
        "_early",
        "_events",
        "_filled",
        "_head",
        "_host",
        "_lock",
        "_out",
        "_size_bytes",
        "_sock",
        "_status",
        "_tls",
        "_wake_bytes",
        "deadline_s",
        "doing",
        "number",
        "on_gone",
    )  # fmt: skip

    def __init__(self, host: Host, sock: socket.socket) -> None:
        self._host = host
        self._sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self.number = sock.fileno()
        self.doing = Doing.HANDSHAKE if self._tls else Doing.HEAD
        #: monotonic time at which what it is at is given up
        self.deadline_s = host.now_s() + HEAD_TIMEOUT_S
        #: what is to be done when the client is gone while it waits
        self.on_gone: Callable[[], None] | None = None
        self._events = select.EPOLLIN
        self._wake_bytes = 1
        #: received after what is handled now
        self._early = b""
        self._head = Head("", "")
        self._buffer: Buffer | None = None
        self._body = _NOTHING
        #: when the first byte of it should have come
        self._body_since_s = 0.0
        self._filled = 0
        self._out: list[bytes | memoryview] = []
        self._status = 0
        self._size_bytes = 0
        self._closes = False
        #: held while the socket is written to by a replica, or closed
        self._lock = threading.Lock()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way: not even the begin of a request has come."""
        return self.doing is Doing.HEAD and not self._early

    def ready(self, events: int) -> None:
        """Something can be read or written, or the client left."""
        try:
            if self.doing is Doing.SENDING:
                self._send()
            if self.doing is Doing.WAITING:
                with self._lock:
                    pass  # a replica that is sending the answer just now has said so afterwards
                self._host.catch_up()
            if self.doing is Doing.WAITING:
                self._look_who_is_there(events)
            else:
                self._read()
        except OSError as error:
            logger.debug("connection %s: %s", self.number, error)
            self.close()

    def send_at_once(self, answer: Answer, then: Callable[[list[bytes | memoryview]], None]) -> None:
        """From a replica's thread: send what the socket takes now, then say what is left.

        It saves the server's thread a wake-up for each answer. `then` is to have `answer` called on that thread, which
        need not be woken for an answer that has left.
        """
        out = [answer.head(self._head.keep_alive and not answer.closes), *answer.parts]
        with self._lock:
            if self.doing is Doing.WAITING and not self._tls:
                try:
                    _advance(out, self._sock.sendmsg(out[:_PARTS]))
                except OSError as error:  # none taken, or the client is gone, which the server's thread will find
                    logger.debug("connection %s: %s", self.number, error)
            then(out)

    def answer(self, answer: Answer, out: list[bytes | memoryview] | None = None) -> None:
        """What `Host.handle` left open, of which `out` is still to be sent; nothing if the client is gone."""
        if self.doing is Doing.CLOSED:
            self._release()
            return
        try:
            self._respond(answer, out)
            if self._early or self._tls:
                self._read()
        except OSError as error:
            logger.debug("connection %s: %s", self.number, error)
            self.close()

    def refuse(self, status: int, text: str) -> None:
        """Answer before anything was asked, and close."""
        try:
            self._respond(_error(HttpError(status, text, closes=True)))
        except OSError:
            self.close()

    def expire(self) -> None:
        """The deadline has passed."""
        logger.debug("connection %s: %s took too long", self.number, self.doing.value)
        if self.doing is Doing.BODY or (self.doing is Doing.HEAD and self._early):
            self.refuse(408, "the request did not come in time")
        else:
            self.close()

    def close(self) -> None:
        """Close now; a request that is at the model goes on, and its buffer comes back with its answer."""
        if self.doing is Doing.CLOSED:
            return
        with self._lock:
            waited = self.doing is Doing.WAITING
            self.doing = Doing.CLOSED
            self._host.closed(self)
            self._sock.close()
        if not waited:
            self._release()
        elif self.on_gone is not None:
            self.on_gone()

    # ---- receiving -----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take what has arrived, request by request."""
        going = True
        while going:
            try:
                match self.doing:
                    case Doing.HANDSHAKE:
                        going = self._shake_hands()
                    case Doing.HEAD:
                        going = self._read_head()
                    case Doing.BODY:
                        going = self._read_body()
                    case Doing.DROPPING:
                        going = self._drop()
                    case _:
                        going = False
            except HttpError as error:
                self._respond(_error(error))

    def _shake_hands(self) -> bool:
        assert isinstance(self._sock, ssl.SSLSocket)
        try:
            self._sock.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLWantWriteError:
            self._watch(select.EPOLLOUT)
            return False
        self._watch(select.EPOLLIN)
        self.doing = Doing.HEAD
        return True

    def _receive(self, view: memoryview) -> int:
        """Bytes received, 0 if there are none now. Closes when the client has."""
        try:
            size = self._sock.recv_into(view)
        except _AGAIN:
            return 0
        if not size:
            self.close()
        self._host.received(size)
        return size

    def _read_head(self) -> bool:
        self._early = self._early.lstrip(b"\r\n")
        end = self._early.find(END)
        if not -1 <= end <= MAX_HEAD_BYTES or (end < 0 and len(self._early) > MAX_HEAD_BYTES):
            raise HttpError(431, f"request line and headers must be below {MAX_HEAD_BYTES} bytes", closes=True)
        if end < 0:
            size = self._receive(self._host.scratch)
            if size and not self._early:
                self.deadline_s = self._host.now_s() + HEAD_TIMEOUT_S
            self._early += self._host.scratch[:size]
            return size > 0
        text, self._early = self._early[: end + len(END)], self._early[end + len(END) :]
        self._begin(parse_head(text))
        return True

    def _begin(self, head: Head) -> None:
        """Go on to the body of a request, unless its head is refused."""
        self._head = head
        refusal = self._host.admit(head)
        if refusal is None:
            self._begin_body(head)
            return
        rest = head.body_bytes - len(self._early)
        self._early = self._early[head.body_bytes :]
        self._respond(refusal if rest <= 0 else replace(refusal, closes=True))

    def _begin_body(self, head: Head) -> None:
        size = head.body_bytes
        if size:
            self._buffer = self._host.buffers.take(size + ALIGNMENT)
            if self._buffer is None:
                raise HttpError(
                    503, "too many requests at once: raise --max-memory-mb, or ask again later", closes=True
                )
            begin = -(head.json_bytes or 0) % ALIGNMENT
            self._body = self._buffer.view[begin : begin + size]
        self._filled = min(len(self._early), size)
        self._body[: self._filled] = self._early[: self._filled]
        self._early = self._early[self._filled :]
        self.doing = Doing.BODY
        self._body_since_s = self._host.now_s() + HEAD_TIMEOUT_S
        # Not the time that the whole may take: who sends nothing must not hold the memory for so long.
        self.deadline_s = self._body_since_s + self._filled / SLOWEST_BYTES_PER_S
        if head.expects_continue and self._filled < size:
            self._sock.send(_CONTINUE)

    def _read_body(self) -> bool:
        left = self._head.body_bytes - self._filled
        if left:
            size = self._receive(self._body[self._filled :])
            self._filled += size
            left -= size
            if left:
                self.deadline_s = self._body_since_s + self._filled / SLOWEST_BYTES_PER_S
                self._wake_for(min(left, WAKE_BYTES))
                return size > 0 and self._tls
        self._wake_for(1)
        self.doing = Doing.WAITING
        self.deadline_s = float("inf")
        answer = self._host.handle(self, self._head, self._body)
        if answer is not None:
            self._respond(answer)
        return True

    def _wake_for(self, size_bytes: int) -> None:
        """Let the kernel collect this much before it wakes us: each wake-up costs more than a packet."""
        if size_bytes != self._wake_bytes and not self._tls:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size_bytes)
            self._wake_bytes = size_bytes

    def _drop(self) -> bool:
        size = self._receive(self._host.scratch)
        self._filled += size
        if self._filled > MAX_DROPPED_BYTES:
            self.close()
        return size > 0 and self.doing is Doing.DROPPING

    def _look_who_is_there(self, events: int) -> None:
        """A client that left while it waits: its request is not run for nobody. One that sends more is read later."""
        gone = bool(events & (select.EPOLLHUP | select.EPOLLERR))
        if not gone and not self._tls:
            gone = not self._sock.recv(1, socket.MSG_PEEK)
        if gone:
            self.close()
        else:
            self._watch(0)

    # ---- sending -------------------------------------------------------------------------------------------------

    def _respond(self, answer: Answer, out: list[bytes | memoryview] | None = None) -> None:
        self._closes = answer.closes or not self._head.keep_alive
        self._out = [answer.head(not self._closes), *answer.parts] if out is None else out
        self._status = answer.status
        self._size_bytes = sum(map(len, answer.parts))
        self.doing = Doing.SENDING
        self.deadline_s = self._host.now_s() + HEAD_TIMEOUT_S + self._size_bytes / SLOWEST_BYTES_PER_S
        self.on_gone = None
        self._send()

    def _send(self) -> None:
        try:
            while self._out:
                sent = self._sock.send(self._out[0]) if self._tls else self._sock.sendmsg(self._out[:_PARTS])
                _advance(self._out, sent)
        except _AGAIN:
            self._watch(select.EPOLLOUT)
            return
        self._host.sent(self._status, self._size_bytes)
        self._release()
        self._watch(select.EPOLLIN)
        if self._closes:
            # Not a close at once: bytes that were not read would turn it into a reset.
            self.doing, self._filled, self._early = Doing.DROPPING, 0, b""
            self.deadline_s = self._host.now_s() + DROP_TIMEOUT_S
            self._wake_for(1)
            self._sock.shutdown(socket.SHUT_WR)
        else:
            self.doing = Doing.HEAD
            self.deadline_s = self._host.now_s() + (HEAD_TIMEOUT_S if self._early else self._host.idle_timeout_s)

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._host.watch(self, events)

    def _release(self) -> None:
        self._body = _NOTHING
        if self._buffer is not None:
            self._host.buffers.give_back(self._buffer)
            self._buffer = None


def _error(error: HttpError) -> Answer:
    return Answer(error.status, (encode(ErrorAnswer(error.text)),), closes=error.closes)


def _advance(out: list[bytes | memoryview], size_bytes: int) -> None:
    """Take from `out` what was sent."""
    while out and size_bytes >= len(out[0]):
        size_bytes -= len(out.pop(0))
    if size_bytes:
        out[0] = memoryview(out[0])[size_bytes:]
