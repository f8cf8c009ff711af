"""Routes that cordon a node: it takes no new workers and keeps those that it has."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Protocol

import msgspec
from fastapi import Depends, FastAPI, Request, Response

from jobserver.api_models import Json


class _Service(Protocol):
    def cordon(self, node: str, body: bytes) -> Json: ...
    def uncordon(self, node: str) -> Json: ...


def add_cordons(app: FastAPI, service: _Service, read_body: Callable[[Request], Awaitable[bytes]]) -> None:
    """`read_body`: bounded, as all bodies are."""
    Body = Annotated[bytes, Depends(read_body)]

    @app.post("/api/v1/nodes/{node}/cordon")
    def cordon(node: str, body: Body) -> Response:
        return Response(msgspec.json.encode(service.cordon(node, body)), media_type="application/json")

    @app.post("/api/v1/nodes/{node}/uncordon")
    def uncordon(node: str) -> Response:
        return Response(msgspec.json.encode(service.uncordon(node)), media_type="application/json")
