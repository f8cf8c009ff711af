"""A server that says what it is told to, byte by byte: for clients that must survive whatever answers."""

import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self


class CannedServer:
    """Gives the n-th request, over all connections, the n-th answer; each connection is closed after `per_connection`.

    `requests`: the heads of the requests as they came. An answer of None closes the connection without a word.
    """

    def __init__(self, answers: Sequence[bytes | None], *, per_connection: int = 1000) -> None:
        self._answers = list(answers)
        self._per_connection = per_connection
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while self._answers:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        for _ in range(self._per_connection):
            if not self._answers or not self._read(connection):
                return
            answer = self._answers.pop(0)
            if answer is None:
                return
            connection.sendall(answer)

    def _read(self, connection: socket.socket) -> bool:
        got = b""
        while b"\r\n\r\n" not in got:
            more = connection.recv(65536)
            if not more:
                return False
            got += more
        head, _, body = got.partition(b"\r\n\r\n")
        self.requests.append(head)
        left = -len(body)
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                left += int(line.split(b":")[1])
        while left > 0:
            left -= len(connection.recv(min(left, 65536)))
        return True


def http(status: int, body: bytes, **headers: str) -> bytes:
    """An answer; "_" in the names of headers stands for "-"."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
