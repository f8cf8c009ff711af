"""A cluster for tests of the decision: facts change by name (join, lose, fail, finish ...).

`World.settle` applies decisions until there is nothing to do and checks the invariants after each single action.
"""

import itertools
from dataclasses import replace
from typing import Any

import msgspec

from distill.listing import Listing
from edl_collective.coord.records import (
    JobSpec,
    JobStatus,
    Member,
    NodeRecord,
    Outcome,
    Plan,
    Progress,
    Rendezvous,
    WorkerRecord,
    WorkerState,
    encode,
)
from jobserver.job_state import crew_of
from jobserver.reconcile import (
    Action,
    Decision,
    FillInSpec,
    ForgetEvent,
    ForgetWorker,
    ReconcileConfig,
    UpdateJob,
    reconcile,
)
from jobserver.snapshot import At, Job, Slot, Snapshot, StoredEvent, with_services

CONFIG = ReconcileConfig(finish_timeout_s=60.0, save_timeout_s=300.0, leader_epoch=7)


class World:
    """What a store, agents and drivers would hold, and the clock."""

    def __init__(self, config: ReconcileConfig = CONFIG) -> None:
        self.config = config
        self.now_s = 1000.0
        self.nodes: dict[str, NodeRecord] = {}
        self.jobs: dict[str, Job] = {}
        self.unreadable_nodes: frozenset[str] = frozenset()
        self.services: dict[str, Listing] = {}
        self.unreadable_jobs: dict[str, frozenset[Slot]] = {}
        #: (job, worker id) -> placement, for all plans ever written
        self.history: dict[tuple[str, str], Slot] = {}
        self._incarnations = itertools.count(1)

    def snapshot(self) -> Snapshot:
        found = Snapshot(
            dict(self.nodes),
            dict(self.jobs),
            unreadable_nodes=self.unreadable_nodes,
            unreadable_jobs=dict(self.unreadable_jobs),
        )
        return with_services(found, dict(self.services))

    # ---- facts

    def join(self, node: str, slots: int = 2, draining: bool = False) -> None:
        incarnation = f"i{next(self._incarnations)}"
        self.nodes[node] = NodeRecord(
            node=node, incarnation=incarnation, address="h", port=1, slots=slots, draining=draining
        )

    def lose(self, node: str) -> None:
        del self.nodes[node]

    def drain(self, node: str) -> None:
        self.nodes[node] = msgspec.structs.replace(self.nodes[node], draining=True)

    def submit(self, job: str = "j", **fields: Any) -> None:
        self.now_s += 0.001
        values = {"job": job, "command": ("x",), "min_np": 1, "max_np": 4, "submitted_at": self.now_s, **fields}
        self.jobs[job] = Job(At(JobSpec(**values), 0))

    def edit(self, job: str = "j", **fields: Any) -> None:
        old = self.jobs[job].spec
        self._change(job, spec=At(msgspec.structs.replace(old.value, **fields), old.version + 1))

    def report(self, job: str = "j", epoch: int = 0, near_end: bool = False, **fields: Any) -> None:
        values = {"generation": 1, "world_size": 1, "epoch": epoch, "step": 0, "near_end": near_end, **fields}
        self._change(job, progress=Progress(**values))

    def measure(self, job: str, rate: float, pause_s: float | None = None, left: int | None = None) -> None:
        """Rank 0 of the newest world reports its speed."""
        world = self.jobs[job].rendezvous
        size: dict[str, Any] = {"generation": world.generation, "world_size": len(world.members)}
        self.report(job, **size, samples_per_s=rate, pause_s=pause_s, samples_left=left)

    def run_workers(self, job: str = "j") -> None:
        """All planned workers run, and form the world."""
        plan = self.plan(job)
        for worker in plan.workers:
            if worker.worker not in self.jobs[job].workers and worker.node in self.nodes:
                self.record(worker.worker, WorkerState.RUNNING, job=job)
        records = self.jobs[job].workers
        for name in {w.worker for w in plan.workers} & records.keys():
            if records[name].value.state is WorkerState.RUNNING:
                self.record(name, WorkerState.RUNNING, job=job, generation=plan.revision)
        self.form(*(w.worker for w in plan.workers), job=job)
        for spare in plan.spares:
            if spare.worker not in self.jobs[job].workers and spare.node in self.nodes:
                self.record(spare.worker, WorkerState.STANDBY, job=job)

    def form(self, *workers: str, job: str = "j") -> None:
        """The driver forms a world of these workers."""
        places = [self.history[job, worker] for worker in workers]
        members = tuple(
            Member(w, place.node, i, 0, 1, 0, 1) for i, (w, place) in enumerate(zip(workers, places, strict=True))
        )
        generation = self.plan(job).revision
        self._change(job, rendezvous=Rendezvous(generation=generation, epoch=1, members=members))

    def record(
        self,
        worker: str,
        state: WorkerState,
        outcome: Outcome | None = None,
        exit_code: int | None = None,
        job: str = "j",
        log_tail: str = "",
        generation: int = 0,
    ) -> None:
        place = self.history[job, worker]
        old = self.jobs[job].workers.get(worker)
        found = WorkerRecord(
            worker=worker,
            node=place.node,
            slot=place.slot,
            incarnation=old.value.incarnation if old else self.nodes[place.node].incarnation,
            state=state,
            outcome=outcome,
            exit_code=exit_code,
            log_tail=log_tail,
            generation=generation,
            placed=state is WorkerState.RUNNING or (old is not None and old.value.placed),
        )
        workers = {**self.jobs[job].workers, worker: At(found, old.version + 1 if old else 0)}
        self._change(job, workers=workers)

    def fail(self, worker: str, job: str = "j", log_tail: str = "") -> None:
        self.record(worker, WorkerState.EXITED, Outcome.FAILED, -9, job, log_tail)

    def finish(self, worker: str, job: str = "j") -> None:
        self.record(worker, WorkerState.EXITED, Outcome.FINISHED, 0, job)

    def let_go(self, job: str = "j") -> None:
        """Agents end every process that no plan lists."""
        planned = {w.worker for w in self.plan(job).everybody}
        for name, at in self.jobs[job].workers.items():
            if name not in planned and at.value.state is not WorkerState.EXITED:
                self.record(name, WorkerState.EXITED, Outcome.LEFT, 0, job)

    # ---- views

    def plan(self, job: str = "j") -> Plan:
        at = self.jobs[job].plan
        assert at is not None, f"{job} has no plan"
        return at.value

    def ids(self, job: str = "j") -> list[str]:
        return [w.worker for w in self.plan(job).workers]

    def spares(self, job: str = "j") -> list[str]:
        return [w.worker for w in self.plan(job).spares]

    def status(self, job: str = "j") -> JobStatus:
        at = self.jobs[job].status
        assert at is not None
        return at.value

    # ---- the loop

    def decide(self) -> Decision:
        return reconcile(self.snapshot(), self.now_s, self.config)

    def settle(self) -> Decision:
        """Apply decisions, deciding again after each single action, until none is left."""
        for _ in range(500):
            decision = self.decide()
            if not decision.actions:
                self.check(settled=True)
                return decision
            self.apply(decision.actions[0])
            self.check()
        raise AssertionError(f"never settles: {decision}")

    def apply(self, action: Action) -> None:
        match action:
            case UpdateJob(job=job):
                self._update(job, action)
            case FillInSpec(job=job, spec=spec, version=version):
                assert self.jobs[job].spec.version == version
                self._change(job, spec=At(spec, version + 1))
            case ForgetWorker(job=job, worker=worker, version=version):
                workers = dict(self.jobs[job].workers)
                assert workers.pop(worker).version == version
                self._change(job, workers=workers)
            case ForgetEvent(job=job, event=event):
                self._change(job, events=tuple(e for e in self.jobs[job].events if e.name != event))

    def _update(self, name: str, action: UpdateJob) -> None:
        job = self.jobs[name]
        assert action.status_version == (job.status.version if job.status else None)
        assert action.plan_version == (job.plan.version if job.plan else None)
        self._change(name, status=At(action.status, (action.status_version or 0) + 1))
        start = len(job.events)
        events = [StoredEvent(f"e-{start + i:010d}", encode(e), 0) for i, e in enumerate(action.events)]
        self._change(name, events=(*job.events, *events))
        if action.plan is not None:
            for worker in action.plan.everybody:
                place = Slot(worker.node, worker.slot)
                assert self.history.setdefault((name, worker.worker), place) == place, "a worker id was used twice"
            if job.plan is not None:
                assert action.plan.revision == job.plan.value.revision + 1
                new = {w.worker for w in action.plan.everybody} - {w.worker for w in job.plan.value.everybody}
                assert all(int(w[1:]) >= job.plan.value.next_worker for w in new)
            self._change(name, plan=At(action.plan, (action.plan_version or 0) + 1))

    def _change(self, job: str, **fields: Any) -> None:
        self.jobs[job] = replace(self.jobs[job], **fields)

    def check(self, settled: bool = False) -> None:
        """No slot is planned twice; bounds hold. Between two actions another plan may still list its dead."""
        snapshot = self.snapshot()
        planned = {name: job.plan.value.everybody for name, job in self.jobs.items() if job.plan}
        if not settled:
            crews = {name: crew_of(self.jobs[name], snapshot) for name in planned}
            planned = {name: (*crew.living, *crew.spares) for name, crew in crews.items()}
        used = [Slot(w.node, w.slot) for workers in planned.values() for w in workers]
        assert len(used) == len(set(used)), f"a slot is planned twice: {used}"
        for job in self.jobs.values():
            if job.plan is not None:
                draining = any(w.node in self.nodes and self.nodes[w.node].draining for w in job.plan.value.workers)
                handover = 2 if draining else 0  # one hands its state over before it leaves
                assert len(job.plan.value.workers) <= max(job.spec.value.max_np, handover)
                assert not settled or len(job.plan.value.spares) <= max(job.spec.value.spares, 0)


def running(np: int = 2, nodes: int = 2, slots: int = 2, **fields: Any) -> World:
    """A world with job j running with `np` workers."""
    world = World()
    for i in range(nodes):
        world.join("abcdef"[i], slots)
    world.submit(np=np, **fields)
    world.settle()
    world.run_workers()
    world.settle()
    assert len(world.ids()) == np
    return world
