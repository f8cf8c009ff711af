"""Views of the HTTP interface that change nothing: services, and jobs as launchers see them."""

from typing import Protocol

import msgspec
from fastapi import FastAPI, Response

from jobserver.api_models import Json, host_rows, pods
from jobserver.service_rows import all_services, find_service
from jobserver.snapshot import Job, Snapshot


class _Service(Protocol):
    def snapshot(self, *, services: bool = False) -> Snapshot: ...
    def job(self, name: str) -> tuple[Job, Snapshot]: ...


def add_views(app: FastAPI, service: _Service) -> None:
    @app.get("/api/v1/services")
    def services() -> Response:
        return _json({"services": all_services(service.snapshot(services=True))})

    @app.get("/api/v1/services/{name}")
    def one_service(name: str) -> Response:
        return _json(find_service(service.snapshot(services=True), name))

    @app.get("/api/v1/jobs/{job}/hosts")
    def hosts(job: str) -> Response:
        return _json({"hosts": host_rows(*service.job(job))})

    @app.get("/rest/1.0/get/query_pods")
    def query_pods(job_id: str) -> Response:
        return _json(pods(*service.job(job_id)))


def _json(value: Json) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
