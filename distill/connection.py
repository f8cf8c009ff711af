"""One keep-alive HTTP/1.1 connection to a teacher that never blocks and copies no tensor.

A request is sent from the buffers that it is given (sendmsg), an answer received into one buffer of the connection. The
owner's epoll loop says when the socket is ready; `interest` says what it should wait for. One request at a time: the
requests in flight at a teacher are as many connections.

Answers must say their Content-Length; chunked ones are refused, as no server of the protocol sends them for tensors.
"""

import os
import select
import socket
import ssl
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from distill import oip
from distill.errors import ProtocolError, TeacherUnavailable

_FIRST_BUFFER_BYTES = 65536
_LARGEST_ANSWER_BYTES = 1 << 30
_HEADER_LENGTH = oip.HEADER_LENGTH.lower().encode()

Buffers = Sequence[bytes | memoryview]


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
        self._unsent: list[memoryview] = []
        self._buffer = bytearray(_FIRST_BUFFER_BYTES)
        self._received = 0
        #: bytes of the whole answer, once its head is there
        self._answer_bytes = 0
        self._head: tuple[int, int, int | None, bool] | None = None
        self._state = _State.CONNECTING
        self._wants_write = True
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

    @property
    def interest(self) -> int:
        """What epoll should wait for."""
        return select.EPOLLIN | (select.EPOLLOUT if self._wants_write else 0)

    def request(self, buffers: Buffers) -> None:
        """Send a request; the buffers must stay as they are until it is answered."""
        assert not self._unsent
        self._unsent = [memoryview(part).cast("B") for part in buffers if len(part)]
        self._received, self._head, self._answer_bytes = 0, None, 0
        if self._state is _State.IDLE:
            self._state = _State.SENDING
            self._send()

    def ready(self) -> Answer | None:
        """The socket is readable or writable: go on. Returns the answer when it is complete."""
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
        except ssl.SSLWantReadError:
            self._wants_write = False
        except ssl.SSLWantWriteError:
            self._wants_write = True
        except OSError as error:  # SSLError is one
            self.connected = False
            raise TeacherUnavailable(f"refuses the TLS handshake: {error}") from error
        else:
            self._start()

    def _start(self) -> None:
        self._state = _State.SENDING if self._unsent else _State.IDLE
        self._wants_write = False

    def _send(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                sent = self._send_some(unsent)
                while unsent and sent >= len(unsent[0]):
                    sent -= len(unsent.pop(0))
                if sent:
                    unsent[0] = unsent[0][sent:]
        except (BlockingIOError, ssl.SSLWantWriteError):
            self._wants_write = True
            return
        except ssl.SSLWantReadError:
            self._wants_write = False
            return
        except OSError as error:
            raise TeacherUnavailable(f"broke off: {error}") from error
        self._wants_write = False
        self._state = _State.RECEIVING

    def _send_some(self, unsent: list[memoryview]) -> int:
        if self._context is None:
            return self._socket.sendmsg(unsent)
        return self._socket.send(unsent[0])

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
        status, length, head_bytes, closes = parse_head(bytes(self._buffer[:end]))
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
