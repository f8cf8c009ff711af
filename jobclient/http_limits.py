"""What a stranger may cost an HTTP endpoint of ours: one that is slow, or holds many connections, is cut off.

Invariant: a connection that has not sent the head of a request within HEAD_TIMEOUT_S ends, so does one whose request
has more than MAX_HEAD_BYTES beside its body (the parser keeps them all), and there are at most MAX_CONNECTIONS. Whoever
only watches whether a process lives connects again. Bodies are bounded where they are read.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 60.0
#: request line, headers, and what frames the body of a request, trailers included
MAX_HEAD_BYTES = 64 * 1024
MAX_CONNECTIONS = 800


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's protocol with these limits; for `uvicorn.Config(http=...)`."""

    _late: asyncio.TimerHandle | None = None
    #: of the request that comes in, bytes that are not its body
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()

    def on_message_begin(self) -> None:
        if self._late is None:
            self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._late = asyncio.get_running_loop().call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def _head_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
