"""The head of an HTTP/1.1 request, parsed by httptools and checked: what is allowed in, and how large it is.

Bodies never pass through the parser, which would copy them. Invariant: a Head says exactly how many bytes follow it.
"""

from dataclasses import dataclass
from functools import lru_cache

import httptools

from distill.oip import HEADER_LENGTH

#: of request line and headers together
MAX_HEAD_BYTES = 16 * 1024
END = b"\r\n\r\n"
REASONS = {
    100: "Continue",
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_LENGTH = HEADER_LENGTH.lower().encode()


class HttpError(Exception):
    """Raised when a request is answered with an error; `closes`: nothing after it on this connection can be trusted."""

    def __init__(self, status: int, text: str, *, closes: bool = False) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.closes = closes


@dataclass(frozen=True, slots=True)
class Head:
    """What a request says before its body."""

    method: str
    path: str
    #: bytes of the body
    body_bytes: int = 0
    #: of these, bytes of JSON before the tensors; None: all of them
    json_bytes: int | None = None
    token: str | None = None
    keep_alive: bool = True
    expects_continue: bool = False


@lru_cache(256)
def parse_head(text: bytes) -> Head:
    """Parse request line and headers, the empty line included; the newest are kept, for clients repeat them.

    Raises HttpError, which always closes.
    """
    collected = _Collected()
    parser = httptools.HttpRequestParser(collected)
    try:
        parser.feed_data(text)
    except httptools.HttpParserUpgrade:
        pass  # an offer that may be ignored
    except httptools.HttpParserError as error:
        raise HttpError(400, f"this is not an HTTP request: {error}", closes=True) from error
    headers = collected.headers
    _refuse_encodings(headers)
    body_bytes = _size(headers.get(b"content-length", b"0"), "Content-Length")
    json_bytes = _size(headers[_LENGTH], HEADER_LENGTH) if _LENGTH in headers else None
    if json_bytes is not None and json_bytes > body_bytes:
        raise HttpError(400, f"{HEADER_LENGTH} is {json_bytes} and the body has {body_bytes} bytes", closes=True)
    kind, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return Head(
        parser.get_method().decode("ascii"),
        collected.url.decode("latin-1"),
        body_bytes,
        json_bytes,
        token.strip() if kind.lower() == "bearer" else None,
        _keeps_alive(headers.get(b"connection", b""), parser.get_http_version()),
        b"expect" in headers,
    )


def _refuse_encodings(headers: dict[bytes, bytes]) -> None:
    if b"transfer-encoding" in headers:
        raise HttpError(411, "send the body with a Content-Length, not in chunks", closes=True)
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise HttpError(415, "send the body without compression", closes=True)
    if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise HttpError(417, "the only thing to expect is 100-continue", closes=True)


def _keeps_alive(connection: bytes, version: str) -> bool:
    """As the client asks. Not the parser's word: it forgets the header once a request without a body is complete."""
    words = {word.strip() for word in connection.lower().split(b",")}
    return b"close" not in words and (version == "1.1" or b"keep-alive" in words)


def _size(text: bytes, name: str) -> int:
    if not text.isdigit() or len(text) > 15:
        raise HttpError(400, f"{name} is {text[:40].decode('latin-1')!r}: it must be a number of bytes", closes=True)
    return int(text)


class _Collected:
    """What the parser calls."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: the parts of its body are sent from where they lie."""

    status: int
    parts: tuple[bytes | memoryview, ...] = ()
    content_type: str = "application/json"
    #: bytes of JSON before the tensors, if there are any
    json_bytes: int | None = None
    #: of a request without keep-alive, of one after which nothing can be trusted, or of a server that leaves
    closes: bool = False

    def head(self, keep_alive: bool) -> bytes:
        """Status line and headers."""
        lines = [
            f"HTTP/1.1 {self.status} {REASONS[self.status]}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {sum(map(len, self.parts))}",
        ]
        if self.json_bytes is not None:
            lines.append(f"{HEADER_LENGTH}: {self.json_bytes}")
        if self.status == 401:
            lines.append("WWW-Authenticate: Bearer")
        if not keep_alive:
            lines.append("Connection: close")
        return "\r\n".join(lines).encode() + END
