"""What became of a job's planned workers, and which phases may follow each other. [pure]

Invariant: every planned worker is exactly one of living, finished, failed, lost or left; what is neither seen dead nor
finished is living. A worker is lost with its node or with the JobClient that started it, whatever its record says.
"""

from dataclasses import dataclass, field

from edl_collective.coord.records import (
    JobKind,
    NodeRecord,
    Outcome,
    Phase,
    PlannedWorker,
    WorkerRecord,
    WorkerState,
)
from jobserver.snapshot import Job, Slot, Snapshot

_ENDS = {Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED}

#: which phases may follow a phase; staying is always allowed, a terminal phase is left by nothing
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.PENDING: frozenset({Phase.RUNNING, Phase.STOPPING, *_ENDS}),
    Phase.RUNNING: frozenset({Phase.HOLDING, Phase.FINISHING, Phase.STOPPING, *_ENDS}),
    Phase.HOLDING: frozenset({Phase.RUNNING, Phase.FINISHING, Phase.STOPPING, *_ENDS}),
    Phase.FINISHING: frozenset({Phase.RUNNING, Phase.HOLDING, Phase.STOPPING, *_ENDS}),
    Phase.STOPPING: frozenset({Phase.STOPPED}),
    Phase.SUCCEEDED: frozenset(),
    Phase.FAILED: frozenset(),
    Phase.STOPPED: frozenset(),
}


def check_transition(job: str, before: Phase, after: Phase) -> None:
    """Raise AssertionError when our own rules are broken."""
    assert after is before or after in TRANSITIONS[before], f"job {job} cannot go from {before} to {after}"


@dataclass(frozen=True, slots=True)
class Death:
    """A planned worker that ended before its training did; `text` tells people how."""

    worker: PlannedWorker
    text: str
    #: counts as a failure of the job's own; a node that went away does not
    counts: bool
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class Crew:
    """The planned workers of a job, parted by what became of them."""

    living: tuple[PlannedWorker, ...] = ()
    finished: tuple[PlannedWorker, ...] = ()
    dead: tuple[Death, ...] = ()
    #: slots of processes that no plan lists any more and that have not ended yet
    leaving: frozenset[Slot] = field(default_factory=frozenset)


def crew_of(job: Job, snapshot: Snapshot) -> Crew:
    """Part the planned workers of `job`."""
    planned = job.plan.value.workers if job.plan else ()
    living: list[PlannedWorker] = []
    finished: list[PlannedWorker] = []
    dead: list[Death] = []
    for worker in planned:
        at = job.workers.get(worker.worker)
        record = None if at is None else at.value
        if record is not None and record.state is WorkerState.EXITED and record.outcome is Outcome.FINISHED:
            finished.append(worker)
            continue
        death = _death(worker, record, snapshot)
        if death is None:
            living.append(worker)
        else:
            dead.append(death)
    names = {w.worker for w in planned}
    leaving = {
        Slot(at.value.node, at.value.slot)
        for name, at in job.workers.items()
        if name not in names and not is_over(at.value, snapshot)
    }
    return Crew(tuple(living), tuple(finished), tuple(dead), frozenset(leaving))


def is_over(record: WorkerRecord, snapshot: Snapshot) -> bool:
    """True when the process of `record` has ended, or went with its node or its JobClient."""
    if record.state is WorkerState.EXITED:
        return True
    node = snapshot.nodes.get(record.node)
    if node is None:
        return record.node not in snapshot.unknown_nodes
    return node.incarnation != record.incarnation


def _death(worker: PlannedWorker, record: WorkerRecord | None, snapshot: Snapshot) -> Death | None:
    node = snapshot.nodes.get(worker.node)
    if record is not None and record.state is WorkerState.EXITED:
        return _exit(worker, record, node)
    if node is None:
        if worker.node in snapshot.unknown_nodes:
            return None
        return Death(worker, f"{worker.worker} was lost with node {worker.node}", counts=False)
    if record is not None and record.incarnation != node.incarnation:
        return Death(worker, f"{worker.worker} was lost when the JobClient of {worker.node} restarted", counts=False)
    if worker.slot >= node.slots:
        text = f"{worker.worker} lost slot {worker.slot}: {worker.node} now has {node.slots}"
        return Death(worker, text, counts=False)
    return None


def _exit(worker: PlannedWorker, record: WorkerRecord, node: NodeRecord | None) -> Death:
    if record.outcome is Outcome.LEFT:
        wanted_to = node is None or node.draining or node.incarnation != record.incarnation
        return Death(worker, f"{worker.worker} left {worker.node}", counts=not wanted_to)
    code = record.exit_code
    how = "ended" if code is None else f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
    text = f"{worker.worker} failed on {worker.node} ({how})"
    return Death(worker, text, counts=True, log_tail=record.log_tail)


def is_new_attempt(job: Job, crew: Crew) -> bool:
    """True when this decision sees the last worker with the training state go.

    Those are the members of the world; before the first world, all that were planned. Counted once, because the same
    transaction that counts takes the dead out of the plan.
    """
    planned = {w.worker for w in job.plan.value.workers} if job.plan else set()
    if not planned or job.spec.value.kind is JobKind.EXTERNAL:
        return False
    carriers = {m.worker for m in job.rendezvous.members} & planned or planned
    return not carriers & {w.worker for w in (*crew.living, *crew.finished)}


def is_whole(job: Job, crew: Crew) -> bool:
    """True when the plan is the running world: its workers, and no others, live and run in the newest generation.

    Nobody tells the world of an external job: its plan is taken for it.
    """
    planned = {w.worker for w in job.plan.value.workers} if job.plan else set()
    if not planned or crew.leaving or {w.worker for w in crew.living} != planned:
        return False
    if job.spec.value.kind is JobKind.EXTERNAL:
        return True
    world, running = job.rendezvous, (WorkerState.RUNNING, job.rendezvous.generation)
    records = [job.workers[name].value for name in planned if name in job.workers]
    at_work = {record.worker for record in records if (record.state, record.generation) == running}
    return {m.worker for m in world.members} == planned == at_work


def still_training(job: Job, crew: Crew) -> tuple[PlannedWorker, ...]:
    """The living that hold the training state: who is not in the world when a worker finishes gets no place any more.

    Without a known world these are all that live.
    """
    members = {m.worker for m in job.rendezvous.members}
    planned = {w.worker for w in job.plan.value.workers} if job.plan else set()
    return tuple(w for w in crew.living if w.worker in members) if members & planned else crew.living


def living_saver(job: Job, crew: Crew) -> PlannedWorker | None:
    """The worker that saves (rank 0 of the world) while it lives; None when it ended or there is no known world."""
    savers = {m.worker for m in job.rendezvous.members if m.rank == 0}
    return next((w for w in crew.living if w.worker in savers), None)


def saver_finished(job: Job, crew: Crew) -> bool:
    """True when the worker that saves (rank 0) is among the finished; without a known world, any finished one."""
    finished = {w.worker for w in crew.finished}
    savers = {m.worker for m in job.rendezvous.members if m.rank == 0}
    planned = {w.worker for w in job.plan.value.workers} if job.plan else set()
    return bool(savers & finished) if savers & planned else bool(finished)
