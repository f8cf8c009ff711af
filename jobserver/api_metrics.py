"""GET /metrics of a JobServer, for Prometheus; it carries the token as every request does.

While ZooKeeper is away it tells of the server alone, so that this can be seen.
"""

from typing import Protocol

from fastapi import FastAPI, Response

from distill.exposition import CONTENT_TYPE
from edl_collective.coord.errors import Disconnected
from jobclient.process_metrics import process_lines
from jobserver.feed import Feed
from jobserver.metrics import ServerSight, cluster_lines, server_lines
from jobserver.snapshot import Snapshot


class _Service(Protocol):
    def now_s(self) -> float: ...
    def snapshot(self, *, services: bool = False) -> Snapshot: ...
    def sight(self, streams: int, answers: dict[int, int]) -> ServerSight: ...


def add_metrics(app: FastAPI, service: _Service) -> None:
    @app.get("/metrics")
    def for_prometheus() -> Response:
        feed: Feed = app.state.feed
        sight = service.sight(feed.count, dict(app.state.answers))
        lines = [*server_lines(sight), *process_lines()]
        try:
            if sight.connected:  # else the answer would take longer than Prometheus waits
                lines += cluster_lines(service.snapshot(services=True), service.now_s())
        except Disconnected as error:
            lines.append(f"# nothing of the cluster: {error}")
        return Response("\n".join([*lines, ""]), headers={"Content-Type": CONTENT_TYPE})
