"""Routes that change a job: edit, scale, stop, retry.

Each may carry If-Match with the version on which it was decided; if the job was changed since, it is refused (412).
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Protocol

import msgspec
from fastapi import Depends, FastAPI, Header, Request, Response

from edl_collective.coord.records import JobSpec
from jobserver.api_models import Json, parse_np
from jobserver.edits import Edit, parse_edit, parse_stop
from jobserver.versions import entity_tag

IfMatch = Annotated[str | None, Header(description="the version (ETag) on which this was decided")]


class _Service(Protocol):
    def change(self, name: str, edit: Edit, if_match: str | None = None) -> Json: ...
    def retry(self, name: str, if_match: str | None = None) -> Json: ...


def tagged(value: Json) -> Response:
    """JSON with its version as ETag."""
    headers = {"ETag": entity_tag(value["version"])}
    return Response(msgspec.json.encode(value), media_type="application/json", headers=headers)


def add_changes(app: FastAPI, service: _Service, read_body: Callable[[Request], Awaitable[bytes]]) -> None:
    """`read_body`: bounded, as all bodies are."""
    Body = Annotated[bytes, Depends(read_body)]

    @app.patch("/api/v1/jobs/{job}")
    def edit(job: str, body: Body, if_match: IfMatch = None) -> Response:
        return tagged(service.change(job, parse_edit(body), if_match))

    @app.post("/api/v1/jobs/{job}/scale")
    def scale(job: str, body: Body, if_match: IfMatch = None) -> Response:
        def scaled(spec: JobSpec) -> JobSpec:
            return parse_np(body, spec)

        return tagged(service.change(job, scaled, if_match))

    @app.post("/api/v1/jobs/{job}/stop")
    def stop(job: str, body: Body, if_match: IfMatch = None) -> Response:
        return tagged(service.change(job, parse_stop(body), if_match))

    @app.post("/api/v1/jobs/{job}/retry")
    def retry(job: str, if_match: IfMatch = None) -> Response:
        return tagged(service.retry(job, if_match))
