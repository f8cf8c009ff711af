"""Who may do what at the HTTP interface: three kinds of callers, told apart by their bearer token.

Invariants: whoever has no token learns no more than health tells everybody; whoever has the read-only token changes
nothing, whatever routes there are, and sees the names of a job's environment variables but not what they hold.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Self

import msgspec
from fastapi import FastAPI, Request, Response

from edl_collective.coord.auth import ClusterKey, same
from jobserver.api_models import Json
from jobserver.api_page import is_page

HEALTH_PATH = "/api/v1/health"
HIDDEN = "(hidden from the read-only token)"


class Role(Enum):
    NOBODY = "nobody"
    READER = "reader"
    WRITER = "writer"


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that the interface knows."""

    write: str
    read: str

    @classmethod
    def of(cls, key: ClusterKey) -> Self:
        return cls(key.api_token, key.read_only_token)

    def role(self, request: Request) -> Role:
        """Whose request it is; each token is compared in constant time."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return Role.NOBODY
        writer, reader = same(token, self.write), same(token, self.read)
        return Role.WRITER if writer else Role.READER if reader else Role.NOBODY


def refusal(status: int, error: str, field: str | None = None) -> Response:
    """The form of every error of the interface."""
    body = msgspec.json.encode({"error": error, "field": field})
    return Response(body, status, media_type="application/json")


def add_access(app: FastAPI, tokens: Tokens, changed: Callable[[], None]) -> None:
    """Let each request in by its token. `changed` is called after each that may have written.

    `app.state.answers` counts answers by their status.
    """
    answers: Counter[int] = Counter()
    app.state.answers = answers

    @app.middleware("http")
    async def authenticate(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await admitted(request, call_next)
        answers[response.status_code] += 1
        return response

    async def admitted(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        role = tokens.role(request)
        if role is Role.NOBODY and request.url.path != HEALTH_PATH and not is_page(request.url.path):
            return refusal(401, "the bearer token is missing or wrong: use the cluster's key file (--key-file)")
        if role is Role.READER and request.method != "GET":
            text = "this token is read-only: it changes nothing; use the cluster's key file (--key-file) for that"
            return refusal(403, text)
        request.state.role = role
        response = await call_next(request)
        if request.method != "GET":
            changed()
        return response


def role_of(request: Request) -> Role:
    """Whose request the middleware let in."""
    role: Role = request.state.role
    return role


def as_seen_by(request: Request, detail: Json) -> Json:
    """`detail` of a job without what its environment variables hold, unless the caller may write."""
    if role_of(request) is Role.WRITER:
        return detail
    spec = detail["spec"]
    return {**detail, "spec": {**spec, "env": dict.fromkeys(spec["env"], HIDDEN)}}
