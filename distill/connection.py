"""One keep-alive HTTP/1.1 connection to a teacher that never blocks and copies no tensor.

A request is sent from where its parts lie, an answer received into one buffer of the connection. The owner's epoll loop
says when something has changed (EVENTS: once for each change, so nothing is told twice). One request at a time: the
requests in flight at a teacher are as many connections.

Large parts of a file, such as the ring, leave by sendfile: not even the kernel copies them, and until the peer has
acknowledged them it may send them again from the file as it is then. So they must not change before the answer is
there, which shows that all has arrived; an answer to a request whose parts have changed must not be used. A connection
that is closed with a request on it is reset, which drops what was not sent.

Answers must say their Content-Length; chunked ones are refused, as no server of the protocol sends them for tensors.
"""

import os
import select
import socket
import ssl
import struct
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple

from distill import oip
from distill.errors import ProtocolError, TeacherUnavailable

_FIRST_BUFFER_BYTES = 65536
_LARGEST_ANSWER_BYTES = 1 << 30
_HEADER_LENGTH = oip.HEADER_LENGTH.lower().encode()
#: below this a copy costs less than looking up the pages of a file
_LEAST_SENDFILE_BYTES = 128 * 1024
#: what epoll should wait for
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, no time


class InFile(NamedTuple):
    """Bytes of a request that lie in a file; `view` maps them, for connections that encrypt."""

    view: memoryview
    fd: int
    offset: int


Buffers = Sequence[bytes | memoryview | InFile]


class Answer(NamedTuple):
    """A whole answer; `body` is the connection's own buffer and only valid until the next request."""

    status: int
    #: bytes of the JSON at the begin of the body, None if all of it is
    head_bytes: int | None
    body: memoryview
    #: the server closes after it
    closes: bool


class _State(Enum):
    CONNECTING = "connecting"
    SHAKING = "shaking hands"
    IDLE = "idle"
    SENDING = "sending"
    RECEIVING = "receiving"


class Connection:
    """Connects at once, without waiting; the first request may be given before the connection is made.

    All methods raise TeacherUnavailable when the connection cannot be made or breaks, and ProtocolError when what
    comes is not HTTP. After either it is closed and of no further use. `connected` tells a refused connection from a
    broken one.
    """

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None = None) -> None:
        self.address = address
        self.connected = False
        self._unsent: list[memoryview | InFile] = []
        self._buffer = bytearray(_FIRST_BUFFER_BYTES)
        self._received = 0
        #: bytes of the whole answer, once its head is there
        self._answer_bytes = 0
        self._head: tuple[int, int, int | None, bool] | None = None
        self._state = _State.CONNECTING
        self._context = context
        self._socket = self._connect(address)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def idle(self) -> bool:
        """Whether it may be given a request without one being under way."""
        return self._state is _State.IDLE and not self._unsent

    @property
    def receiving(self) -> bool:
        """Whether the request is sent."""
        return self._state is _State.RECEIVING

    @property
    def begun(self) -> bool:
        """Whether a part of the answer is there."""
        return self._received > 0

    def request(self, buffers: Buffers) -> None:
        """Send a request; the buffers must stay as they are until it is answered."""
        assert not self._unsent
        self._unsent = [self._to_send(part) for part in buffers if part]
        self._received, self._head, self._answer_bytes = 0, None, 0
        if self._state is _State.IDLE:
            self._state = _State.SENDING
            self._send()

    def ready(self) -> Answer | None:
        """The socket became readable or writable: go on. Returns the answer when it is complete."""
        if self._state is _State.CONNECTING:
            self._finish_connect()
        if self._state is _State.SHAKING:
            self._shake_hands()
        if self._state is _State.SENDING:
            self._send()
        if self._state is _State.RECEIVING:
            return self._receive()
        if self._state is _State.IDLE:
            self._check_open()
        return None

    def close(self) -> None:
        if self._state is _State.SENDING or self._state is _State.RECEIVING:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._socket.close()
        self._unsent.clear()

    # ---- states ---------------------------------------------------------------------------------------------------

    def _connect(self, address: tuple[str, int]) -> socket.socket:
        """Begin to connect. The name is looked up here, which is the only thing that may take its time."""
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
            connection = socket.socket(family, kind, protocol)
        except OSError as error:
            raise TeacherUnavailable(f"cannot be found: {error}") from error
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _is_here(family, place):
            # No packet is lost or late on the way, so one that paces them (such as bbr) only costs: measured, a fifth.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        try:
            connection.connect(place)
        except BlockingIOError:
            pass
        except OSError as error:
            connection.close()
            raise TeacherUnavailable(f"cannot be reached: {error}") from error
        return connection

    def _finish_connect(self) -> None:
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise TeacherUnavailable(f"cannot be reached: {OSError(error, os.strerror(error))}")
        try:
            self._socket.getpeername()
        except OSError:  # woken up too early
            return
        self.connected = True
        if self._context is None:
            self._start()
            return
        self._socket = self._context.wrap_socket(
            self._socket, server_hostname=self.address[0], do_handshake_on_connect=False
        )
        self._state = _State.SHAKING

    def _shake_hands(self) -> None:
        assert isinstance(self._socket, ssl.SSLSocket)
        try:
            self._socket.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:  # SSLError is one
            self.connected = False
            raise TeacherUnavailable(f"refuses the TLS handshake: {error}") from error
        self._start()

    def _start(self) -> None:
        self._state = _State.SENDING if self._unsent else _State.IDLE

    def _to_send(self, part: bytes | memoryview | InFile) -> memoryview | InFile:
        if not isinstance(part, InFile):
            return memoryview(part).cast("B")
        by_file = self._context is None and len(part.view) >= _LEAST_SENDFILE_BYTES
        return part if by_file else part.view

    def _send(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                self._send_some(unsent)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return
        except OSError as error:
            raise TeacherUnavailable(f"broke off: {error}") from error
        self._state = _State.RECEIVING

    def _send_some(self, unsent: list[memoryview | InFile]) -> None:
        """Send a part in a file, or the parts up to the next such, as far as the socket takes them."""
        first = unsent[0]
        if isinstance(first, InFile):
            unsent[:1] = self._send_file(first)
            return
        memory: list[memoryview] = []
        for part in unsent:
            if isinstance(part, InFile):
                break
            memory.append(part)
        more = socket.MSG_MORE if len(memory) < len(unsent) else 0
        sent = self._socket.sendmsg(memory, (), more) if self._context is None else self._socket.send(first)
        while memory and sent >= len(memory[0]):
            sent -= len(memory.pop(0))
            del unsent[0]
        if sent:
            unsent[0] = memory[0][sent:]

    def _send_file(self, part: InFile) -> list[InFile]:
        """Returns what is left of it."""
        size = len(part.view)
        sent = os.sendfile(self._socket.fileno(), part.fd, part.offset, size)
        assert sent, "the file is as long as the mapping of it"
        return [InFile(part.view[sent:], part.fd, part.offset + sent)] if sent < size else []

    def _receive(self) -> Answer | None:
        try:
            while True:
                if self._received == len(self._buffer):
                    raise ProtocolError("sends a head without end, or more than its Content-Length says")
                with memoryview(self._buffer) as free:
                    count = self._socket.recv_into(free[self._received :])
                if not count:
                    raise TeacherUnavailable("broke off: it closed the connection")
                self._received += count
                if self._head is None:
                    self._parse_head()
                if self._head is not None and self._received >= self._answer_bytes:
                    return self._complete()
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except OSError as error:
            raise TeacherUnavailable(f"broke off: {error}") from error

    def _parse_head(self) -> None:
        end = self._buffer.find(b"\r\n\r\n", 0, self._received)
        if end < 0:
            return
        status, length, head_bytes, closes = _parsed(bytes(self._buffer[:end]))
        self._head = (end + 4, status, head_bytes, closes)
        self._answer_bytes = end + 4 + length
        if self._answer_bytes > _LARGEST_ANSWER_BYTES:
            raise ProtocolError(f"announces an answer of {length} bytes; {_LARGEST_ANSWER_BYTES} are the most")
        if self._answer_bytes > len(self._buffer):
            grown = bytearray(self._answer_bytes)  # a new one: somebody may still look at the answer before
            grown[: self._received] = self._buffer[: self._received]
            self._buffer = grown

    def _complete(self) -> Answer:
        assert self._head is not None
        begin, status, head_bytes, closes = self._head
        if self._received > self._answer_bytes:
            raise ProtocolError("sends more than its Content-Length says")
        self._state = _State.IDLE
        return Answer(status, head_bytes, memoryview(self._buffer)[begin : self._answer_bytes], closes)

    def _check_open(self) -> None:
        """Nothing is asked: what can be read is the end, or nonsense."""
        try:
            data = self._socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as error:
            raise TeacherUnavailable(f"broke off: {error}") from error
        raise TeacherUnavailable("broke off: it closed the connection") if not data else ProtocolError("speaks unasked")


def _is_here(family: int, place: Any) -> bool:
    """Whether an address is this machine's: whether it is also the one from which it is reached. Sends nothing."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)
        return bool(probe.getsockname()[0] == place[0])


def parse_head(head: bytes) -> tuple[int, int, int | None, bool]:
    """Status, Content-Length, bytes of the JSON head (None: not said) and whether the server closes afterwards.

    `head` is the answer up to the empty line. Raises ProtocolError.
    """
    first, *lines = head.split(b"\r\n")
    version, _, rest = first.partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
        raise ProtocolError(f"does not speak HTTP/1.1: {first[:60]!r}")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    length, head_bytes = fields.get(b"content-length", b""), fields.get(_HEADER_LENGTH)
    if not length.isdigit():
        raise ProtocolError("does not say the Content-Length of its answer")
    if head_bytes is not None and not head_bytes.isdigit():
        raise ProtocolError(f"sends the {oip.HEADER_LENGTH} {head_bytes!r}")
    closes = fields.get(b"connection", b"").lower() == b"close" or version == b"HTTP/1.0"
    return int(rest[:3]), int(length), None if head_bytes is None else int(head_bytes), closes


#: answers of a teacher mostly have the head of one before
_parsed = lru_cache(256)(parse_head)
