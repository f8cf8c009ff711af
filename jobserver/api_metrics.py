"""GET /metrics of a JobServer, for Prometheus; it carries the token as every request does."""

from typing import Protocol

from fastapi import FastAPI, Response

from distill.exposition import CONTENT_TYPE
from jobserver.metrics import metrics
from jobserver.snapshot import Snapshot


class _Service(Protocol):
    def now_s(self) -> float: ...
    def snapshot(self, *, services: bool = False) -> Snapshot: ...


def add_metrics(app: FastAPI, service: _Service) -> None:
    @app.get("/metrics")
    def for_prometheus() -> Response:
        return Response(metrics(service.snapshot(services=True), service.now_s()), media_type=CONTENT_TYPE)
