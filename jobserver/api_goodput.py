"""GET /api/v1/goodput: where the time of every job went, for those who look at all of them again and again."""

from typing import Protocol

import msgspec
from fastapi import FastAPI, Response

from jobserver.goodput import goodput, train_part
from jobserver.snapshot import Job, Snapshot


class _Service(Protocol):
    def now_s(self) -> float: ...
    def snapshot(self, *, services: bool = False) -> Snapshot: ...


def add_goodput(app: FastAPI, service: _Service) -> None:
    @app.get("/api/v1/goodput")
    def ledgers() -> Response:
        snapshot, now_s = service.snapshot(), service.now_s()
        jobs = {name: _row(job, now_s) for name, job in snapshot.jobs.items()}
        return Response(msgspec.json.encode({"jobs": jobs}), media_type="application/json")


def _row(job: Job, now_s: float) -> dict[str, object]:
    ledger = goodput(job, now_s)
    return {"goodput": ledger, "train_part": train_part(ledger)}
