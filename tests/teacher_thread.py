"""A teacher server in a thread of the test: starts in milliseconds, and its clock can be the test's."""

import http.client
import socket
import threading
from types import TracebackType
from typing import Any, Self

from distill.teacher.config import ServeConfig, parse_inputs
from distill.teacher.run import build, tls_context
from distill.teacher.server import Limits, Server
from distill.teacher_client import TeacherClient
from edl_collective.coord.clock import Clock, SystemClock

IMAGE = "image:uint8:3,8,8"


class TeacherThread:
    """Serves a model of tests/teacher_models.py; options are ServeConfig's; `clock` is that of the sockets."""

    def __init__(
        self,
        model: str = "teacher_models:identity",
        *,
        input: str = IMAGE,
        limits: Limits | None = None,
        clock: Clock | None = None,
        **options: Any,
    ) -> None:
        config = ServeConfig(model=model, inputs=parse_inputs((input,) if input else ()), threads=1, **options)
        self.service = build(config, SystemClock())
        #: it ends with requests unanswered, whose buffers nobody takes back
        self.breaks_off = False
        self.model = self.service.identity.name
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self._listener.getsockname()[1]
        tls = tls_context(config)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self.server = Server(self._listener, self.service, clock or SystemClock(), limits or Limits(), tls)
        self._thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> Self:
        self.service.engine.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            self.server.stop()
        self._thread.join()
        assert self.service.engine.stop(10.0)
        assert self.breaks_off or self.server.buffers.used_bytes == 0, "a buffer was not given back"

    def join(self, timeout_s: float) -> bool:
        """Whether the server has ended within that time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def client(self, **options: Any) -> TeacherClient:
        return TeacherClient(self.url, **options)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60.0)

    def http(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Status and body of one request on a connection of its own; "_" in the names of headers stands for "-"."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60.0)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
