"""What a stranger may cost an HTTP endpoint of ours: one that is slow, or holds many connections, is cut off.

Invariant: a connection that has not sent the head of a request within HEAD_TIMEOUT_S ends, and there are at most
MAX_CONNECTIONS. Whoever only watches whether a process lives connects again. Bodies are bounded where they are read.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 60.0
MAX_CONNECTIONS = 800


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's protocol with these limits; for `uvicorn.Config(http=...)`."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

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
