"""What a JobClient of tests looks at: its node, a job, plans and workers of it."""

from typing import Any

from msgspec.structs import replace

from edl_collective.coord.records import (
    JobSpec,
    JobStatus,
    NodeRecord,
    Phase,
    Plan,
    PlannedWorker,
    WorkerRecord,
    WorkerState,
)
from jobclient.decide import JobView, LocalDriver, LocalWorker, View

NODE = NodeRecord(node="a", incarnation="life-2", address="h", port=1, slots=2)
W1, OTHER = PlannedWorker("w1", "a", 0), PlannedWorker("w3", "b", 0)
SPEC = JobSpec(job="j", command=("x",), max_np=8, leave_timeout_s=30.0, stop_timeout_s=10.0)


def plan(*workers: PlannedWorker, driver: str | None = "b") -> Plan:
    return Plan(revision=4, workers=workers, driver_node=driver, reason="why", next_worker=9, leader_epoch=1)


def record(worker: str, state: WorkerState, incarnation: str = "life-2", node: str = "a") -> WorkerRecord:
    return WorkerRecord(worker=worker, node=node, slot=0, incarnation=incarnation, state=state)


def view(job: JobView | None, *workers: LocalWorker, drivers: tuple[LocalDriver, ...] = (), **fields: Any) -> View:
    return View(node=NODE, jobs={} if job is None else {"j": job}, workers=workers, drivers=drivers, **fields)


def local(worker: str = "w1", slot: int = 0, *, cold: bool = False, **fields: Any) -> LocalWorker:
    return LocalWorker("j", worker, slot, cold=cold, **fields)


STATUS = JobStatus(phase=Phase.RUNNING, reason="", since=0.0)
PLANNED = JobView(SPEC, plan(W1, OTHER), STATUS)
EMPTY = JobView(SPEC, plan(OTHER), STATUS)
ENDED = JobView(SPEC, plan(W1), replace(STATUS, phase=Phase.SUCCEEDED))
