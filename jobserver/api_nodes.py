"""Routes that give orders for a node: drain it, or cordon it, which keeps who is there."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Protocol

import msgspec
from fastapi import Depends, FastAPI, Request, Response

from jobserver.api_models import Json


class _Service(Protocol):
    def drain(self, node: str, body: bytes) -> Json: ...
    def undrain(self, node: str) -> Json: ...
    def cordon(self, node: str, body: bytes) -> Json: ...
    def uncordon(self, node: str) -> Json: ...


def add_orders(app: FastAPI, service: _Service, read_body: Callable[[Request], Awaitable[bytes]]) -> None:
    """`read_body`: bounded, as all bodies are."""
    Body = Annotated[bytes, Depends(read_body)]

    @app.post("/api/v1/nodes/{node}/drain")
    def drain(node: str, body: Body) -> Response:
        return _json(service.drain(node, body))

    @app.post("/api/v1/nodes/{node}/undrain")
    def undrain(node: str) -> Response:
        return _json(service.undrain(node))

    @app.post("/api/v1/nodes/{node}/cordon")
    def cordon(node: str, body: Body) -> Response:
        return _json(service.cordon(node, body))

    @app.post("/api/v1/nodes/{node}/uncordon")
    def uncordon(node: str) -> Response:
        return _json(service.uncordon(node))


def _json(value: Json) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
