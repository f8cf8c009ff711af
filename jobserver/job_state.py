"""What became of a job's planned workers, and which phases may follow each other. [pure]

Invariant: every planned worker is exactly one of living, finished, failed, lost or left; what is neither seen dead nor
finished is living. A worker is lost with its node or with the JobClient that started it, whatever its record says.
"""

from dataclasses import dataclass, field, replace

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

#: kinds of jobs that have no driver and no world of ours
WORLDLESS = frozenset({JobKind.EXTERNAL, JobKind.TEACHER})

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
    #: it failed before it had a place in a world, beside a world that goes on; or it was a teacher, which has no world
    standby: bool = False


@dataclass(frozen=True, slots=True)
class Crew:
    """The planned workers of a job, and the spares that are in its world, parted by what became of them."""

    living: tuple[PlannedWorker, ...] = ()
    finished: tuple[PlannedWorker, ...] = ()
    dead: tuple[Death, ...] = ()
    #: slots of processes that no plan lists any more and that have not ended yet
    leaving: frozenset[Slot] = field(default_factory=frozenset)
    #: spares in no world: those that live, the warm ones first, and those that do not
    spares: tuple[PlannedWorker, ...] = ()
    lost_spares: tuple[Death, ...] = ()
    #: names of those that have been at the gate
    warm: frozenset[str] = frozenset()


def crew_of(job: Job, snapshot: Snapshot) -> Crew:
    """Part the planned workers of `job`."""
    everybody = job.plan.value.everybody if job.plan else ()
    members = {m.worker for m in job.rendezvous.members}
    waiting = tuple(w for w in (job.plan.value.spares if job.plan else ()) if w.worker not in members)
    living: list[PlannedWorker] = []
    finished: list[PlannedWorker] = []
    dead: list[Death] = []
    for worker in everybody:
        at = job.workers.get(worker.worker)
        record = None if at is None else at.value
        if record is not None and _lives_for_sure(worker, record, snapshot):
            living.append(worker)
            continue
        ended = record is not None and record.state is WorkerState.EXITED
        if ended and record is not None and record.outcome is Outcome.FINISHED and _can_finish(worker, job, waiting):
            finished.append(worker)
            continue
        death = _death(worker, record, snapshot)
        if death is None:
            living.append(worker)
        else:
            dead.append(death)
    names = {w.worker for w in everybody}
    leaving = {
        Slot(at.value.node, at.value.slot)
        for name, at in job.workers.items()
        if name not in names and not is_over(at.value, snapshot)
    }
    if job.spec.value.kind is JobKind.TEACHER:
        dead = [replace(death, standby=death.counts) for death in dead]
    elif any(w.worker in members for w in living):
        dead = [_beside_a_world(job, death) for death in dead]
    warm = _warm(job)
    return Crew(
        living=tuple(w for w in living if w not in waiting),
        finished=tuple(finished),
        dead=tuple(death for death in dead if death.worker not in waiting),
        leaving=frozenset(leaving),
        spares=tuple(sorted((w for w in living if w in waiting), key=lambda w: w.worker not in warm)),
        lost_spares=tuple(death for death in dead if death.worker in waiting),
        warm=warm,
    )


def _lives_for_sure(worker: PlannedWorker, record: WorkerRecord, snapshot: Snapshot) -> bool:
    """True of nearly every worker: what a large cluster is asked about first."""
    node = snapshot.nodes.get(worker.node)
    if node is None or record.state is WorkerState.EXITED:
        return False
    return record.incarnation == node.incarnation and worker.slot < node.slots


def _can_finish(worker: PlannedWorker, job: Job, waiting: tuple[PlannedWorker, ...]) -> bool:
    """A standby has nothing that could be finished, and a teacher serves until it is told to leave."""
    return worker not in waiting and job.spec.value.kind is not JobKind.TEACHER


def _warm(job: Job) -> frozenset[str]:
    """Who has been at the gate; of teachers, who is listed in the service: those have answered."""
    if job.spec.value.kind is JobKind.TEACHER:
        listed = {t.worker for t in job.fleet.teachers.values() if t.job == job.name and t.worker is not None}
        return frozenset(listed & job.workers.keys())
    return frozenset(name for name, at in job.workers.items() if at.value.state is not WorkerState.STARTING)


def _beside_a_world(job: Job, death: Death) -> Death:
    """`death` while a world goes on: who never had a place in one has cost it nothing, and is no failure of the job."""
    at = job.workers.get(death.worker.worker)
    placed = (at is not None and at.value.placed) or any(
        m.worker == death.worker.worker for m in job.rendezvous.members
    )
    return death if placed else replace(death, counts=False, standby=death.counts)


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
    if record.outcome is Outcome.ABORTED:
        text = f"{worker.worker} was killed on {worker.node} while it joined a generation that lost another member"
        return Death(worker, text, counts=False)
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
    if not planned or job.spec.value.kind in WORLDLESS:
        return False
    carriers = {m.worker for m in job.rendezvous.members} & _everybody(job) or planned
    return not carriers & {w.worker for w in (*crew.living, *crew.finished)}


def is_whole(job: Job, crew: Crew) -> bool:
    """True when the plan is the running world: its workers, and no others, live and run in the newest generation.

    Nobody tells the world of an external job, and teachers have none: their plan is taken for it.
    """
    planned = {w.worker for w in job.plan.value.workers} if job.plan else set()
    if not planned or crew.leaving or {w.worker for w in crew.living} != planned:
        return False
    if job.spec.value.kind in WORLDLESS:
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
    return tuple(w for w in crew.living if w.worker in members) if members & _everybody(job) else crew.living


def living_saver(job: Job, crew: Crew) -> PlannedWorker | None:
    """The worker that saves (rank 0 of the world) while it lives; None when it ended or there is no known world."""
    savers = {m.worker for m in job.rendezvous.members if m.rank == 0}
    return next((w for w in crew.living if w.worker in savers), None)


def saver_finished(job: Job, crew: Crew) -> bool:
    """True when the worker that saves (rank 0) is among the finished; without a known world, any finished one."""
    finished = {w.worker for w in crew.finished}
    savers = {m.worker for m in job.rendezvous.members if m.rank == 0}
    return bool(savers & finished) if savers & _everybody(job) else bool(finished)


def _everybody(job: Job) -> set[str]:
    return {w.worker for w in job.plan.value.everybody} if job.plan else set()
