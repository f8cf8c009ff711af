"""What to write next: a function of what is stored, the time and the configuration. [pure]

Invariants: the plan and the status of a job change in one action, so that what is counted is counted once; applying
the decision and deciding again yields no action; worker ids are never used twice; a plan never exceeds what the job
wants nor a node's slots. See docs/decisions/006-reconcile.md. Nothing is written here, and nothing is remembered
between two calls.
"""

from dataclasses import dataclass, replace

from msgspec import structs

from edl_collective.coord.records import Event, JobKind, JobSpec, JobStatus, Phase, Plan, PlannedWorker
from jobserver import reasons
from jobserver.allocate import Grant, Request, Room, allocate, worker_number
from jobserver.changing import Changing, fill_in
from jobserver.job_state import WORLDLESS, crew_of, is_over
from jobserver.judge import Case, enter, judge, may_time_out, near_end, note_effect, outlook, with_
from jobserver.snapshot import At, Job, Slot, Snapshot


@dataclass(frozen=True, slots=True)
class ReconcileConfig:
    """Rules of the house."""

    #: how long the other workers may take to end after rank 0 finished
    finish_timeout_s: float = 120.0
    #: how long rank 0 may evaluate and save after another worker finished
    save_timeout_s: float = 3600.0
    #: after an outage of ZooKeeper, how long nodes may take to be back before their absence counts
    absence_timeout_s: float = 10.0
    #: fill a node before the next one; otherwise spread
    pack: bool = True
    #: part of the slots up to which jobs get more than their minimum; the others are kept for jobs to come
    load_ceiling: float = 1.0
    #: a job that has waited for so long is not overtaken by later ones of its priority any more
    patience_s: float = 600.0
    #: events and ended workers that are kept of each job, for people
    max_events: int = 200
    max_ended_workers: int = 32
    #: deletions of old events and workers in one decision
    max_deletions: int = 50
    #: stamped into plans
    leader_epoch: int = 0
    #: for jobs that leave their size open
    changing: Changing | None = None

    def __post_init__(self) -> None:
        if not 0 < self.load_ceiling <= 1:
            raise ValueError(f"load_ceiling is {self.load_ceiling:g}: it must be above 0 and at most 1")
        for name in ("finish_timeout_s", "save_timeout_s", "absence_timeout_s", "patience_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name):g}: it must be positive")
        for name in ("max_events", "max_ended_workers", "max_deletions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True, slots=True)
class UpdateJob:
    """Write status and, unless it is None, plan in one transaction; the versions are those that were read."""

    job: str
    status: JobStatus
    status_version: int | None
    plan: Plan | None
    plan_version: int | None
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class FillInSpec:
    """Write what a new job left open into its spec; it is decided about after that."""

    job: str
    spec: JobSpec
    version: int


@dataclass(frozen=True, slots=True)
class ForgetWorker:
    """Delete the record of a worker that ended."""

    job: str
    worker: str
    version: int


@dataclass(frozen=True, slots=True)
class ForgetEvent:
    """Delete an old event."""

    job: str
    event: str
    version: int


Action = UpdateJob | FillInSpec | ForgetWorker | ForgetEvent


@dataclass(frozen=True, slots=True)
class Decision:
    """`wake_at`: wall time in seconds to decide again even if nothing changes."""

    actions: tuple[Action, ...]
    reason: str
    wake_at: float | None = None


def reconcile(snapshot: Snapshot, now_s: float, config: ReconcileConfig) -> Decision:
    """Decide. `now_s` is wall time in seconds, because what it is compared with survives a change of leader."""
    order = sorted(snapshot.jobs.values(), key=lambda job: job.turn)
    open_jobs = [action for job in order for action in _fill_in(job, config)]
    left_open = {action.job for action in open_jobs}
    order = [job for job in order if job.name not in left_open]
    timeouts = (config.finish_timeout_s, config.save_timeout_s)
    cases = [judge(job, crew_of(job, snapshot), now_s, *timeouts) for job in order]
    asking = [case for case in cases if case.clear is None]
    grants = allocate([_request(case, now_s, config) for case in asking], _room(cases, snapshot, config))
    actions: list[Action] = [*open_jobs]
    final: list[Case] = []
    for case in cases:
        case, plan = _settle(case, grants.get(case.job.name), snapshot, now_s, config)
        actions += _update(case, plan, now_s)
        final.append(_wake_when_overdue(case, now_s, config))
    rubbish = [action for case in final for action in _rubbish(case, snapshot, config)]
    actions += rubbish[: config.max_deletions]
    reasons = [_in_one_line(case) for case in final if not case.status.phase.terminal]
    wakes = [case.wake_at for case in final if case.wake_at is not None]
    return Decision(tuple(actions), "; ".join(reasons) or "no job that has not ended", min(wakes, default=None))


def _in_one_line(case: Case) -> str:
    """The job and its reason; the lines after the first are a worker's log."""
    first = case.status.reason.partition("\n")[0]
    return f"{case.job.name}: {case.status.phase}, {first}"


def _fill_in(job: Job, config: ReconcileConfig) -> list[FillInSpec]:
    spec = job.spec.value
    filled = spec if job.status else fill_in(spec, config.changing)
    return [] if filled == spec else [FillInSpec(job.name, filled, job.spec.version)]


# ---- what all jobs get ---------------------------------------------------------------------------------------------


def _request(case: Case, now_s: float, config: ReconcileConfig) -> Request:
    assert case.wanted is not None, "only a job that asks makes a request"
    spec, living, standing = case.job.spec.value, case.crew.living, case.crew.spares
    least, want, spares = spec.min_np, case.wanted.np, spec.spares
    if near_end(case):  # it gives nothing to others
        least, spares = min(max(least, len(living)), want), min(spares, len(standing))
    if case.held_back_until is not None:  # what lives may have a place, nobody new
        if spec.kind is JobKind.TEACHER:  # no training stands still for the lack of one
            least = min(least, len(living))
        want, spares = max(least, min(want, len(living) + len(standing))), min(spares, len(standing))
    members = frozenset(m.worker for m in case.job.rendezvous.members)
    started = case.status.started_at is not None
    overdue = case.status.phase is Phase.PENDING and now_s >= case.status.since + config.patience_s
    claim = (spec.priority, overdue, outlook(case))
    return Request(case.job.name, least, want, living, started, spares, standing, members, *claim)


def _wake_when_overdue(case: Case, now_s: float, config: ReconcileConfig) -> Case:
    due_at = case.status.since + config.patience_s
    if case.status.phase is not Phase.PENDING or now_s >= due_at:
        return case
    return replace(case, wake_at=min(due_at, case.wake_at or due_at))


def _room(cases: list[Case], snapshot: Snapshot, config: ReconcileConfig) -> Room:
    taken = {slot for slots in snapshot.unreadable_jobs.values() for slot in slots}
    leaving: set[Slot] = set()
    living: set[Slot] = set()
    for case in cases:
        held = {Slot(w.node, w.slot) for w in (*case.crew.living, *case.crew.spares)}
        living |= held
        leaving |= case.crew.leaving
        if case.clear is True:
            leaving |= held
        elif case.clear is False:  # its plan stays, and with it the slots of those that have ended already
            taken |= {Slot(w.node, w.slot) for w in (*case.workers, *case.spares)}
    nodes = {name: node.slots for name, node in snapshot.nodes.items() if not node.draining}
    for name in snapshot.unknown_nodes:  # it keeps who is there and takes nobody
        nodes[name] = 1 + max((slot.slot for slot in living if slot.node == name), default=-1)
        taken |= {Slot(name, i) for i in range(nodes[name])} - living
    closed = frozenset(name for name in nodes if name in snapshot.nodes and snapshot.nodes[name].cordoned)
    taken |= {Slot(name, i) for name in closed for i in range(nodes[name])}
    return Room(nodes, taken, leaving - taken, config.pack, config.load_ceiling, closed)


# ---- what is written -----------------------------------------------------------------------------------------------


def _settle(
    case: Case, grant: Grant | None, snapshot: Snapshot, now_s: float, config: ReconcileConfig
) -> tuple[Case, Plan | None]:
    """The decided case and its new plan, None where the plan stays."""
    if case.clear is not None:
        reason = case.status.reason.partition("\n")[0]  # the status has the end of the log, too
        return case, _plan(case, (), (), snapshot, reason, config) if case.clear else None
    assert grant is not None, "allocate answers every request"
    number = case.job.plan.value.next_worker if case.job.plan else 1
    new = tuple(PlannedWorker(f"w{number + i}", slot.node, slot.slot) for i, slot in enumerate(grant.added))
    workers = (*grant.kept, *new)
    number += len(new)
    carrier = _carrier(case, grant, snapshot)
    waiting = grant.spares
    if carrier is not None:
        workers, cut = _seat(carrier, workers, case)
        waiting += tuple(w for w in cut if w in grant.kept)
    standby = tuple(PlannedWorker(f"w{number + i}", s.node, s.slot) for i, s in enumerate(grant.spare_slots))
    spares = (*sorted(waiting, key=lambda w: worker_number(w.worker)), *standby)
    promoted = tuple(f"{w.worker} stood by and takes a place" for w in workers if w in case.spares)
    leaving = [w for w in grant.dropped if _drains(w.node, snapshot) and w != carrier]
    drained = tuple(f"{w.worker} leaves {w.node}, which drains" for w in leaving)
    if carrier is not None:
        drained += (f"{carrier.worker} stays on {carrier.node}, which drains, until others have its state",)
    case = _phase(replace(case, news=case.news + promoted + drained), workers, grant, snapshot, now_s)
    plan = _plan(case, workers, spares, snapshot, reasons.of_plan(case, workers, spares), config)
    return (note_effect(case, now_s) if plan is None else case), plan


def _carrier(case: Case, grant: Grant, snapshot: Snapshot) -> PlannedWorker | None:
    """Who hands the training state over when all that have it are on nodes that drain: one of them, rank 0 if it lives.

    It stays until enough of those that come are in the world; if nobody can come, it leaves like the others.
    """
    assert case.wanted is not None
    ranks = {m.worker: m.rank for m in case.job.rendezvous.members}
    enough = max(1, min(case.job.spec.value.min_np, case.wanted.np - 1, grant.count))
    if not grant.count or sum(w.worker in ranks for w in grant.kept) >= enough:
        return None
    inside = [w for w in grant.dropped if w.worker in ranks and _drains(w.node, snapshot)]
    return min(inside, key=lambda w: ranks[w.worker], default=None)


def _seat(
    carrier: PlannedWorker, workers: tuple[PlannedWorker, ...], case: Case
) -> tuple[tuple[PlannedWorker, ...], tuple[PlannedWorker, ...]]:
    """The workers with `carrier` among them, and who has no place for that time: the newest that are not in the world.

    Those of them that live are as good as spares, and the first to be promoted when the carrier has gone.
    """
    most = max(2, case.wanted.np if case.wanted else 0)
    members = {m.worker for m in case.job.rendezvous.members}
    outside = [w for w in workers if w.worker not in members]
    cut = tuple(outside[len(outside) - max(0, 1 + len(workers) - most) :])
    return (carrier, *(w for w in workers if w not in cut)), cut


def _drains(node: str, snapshot: Snapshot) -> bool:
    record = snapshot.nodes.get(node)
    return record is not None and record.draining


def _phase(case: Case, workers: tuple[PlannedWorker, ...], grant: Grant, snapshot: Snapshot, now_s: float) -> Case:
    """The phase that `workers` put the job in."""
    assert case.wanted is not None
    spec, status = case.job.spec.value, case.status
    if len(workers) >= spec.min_np:
        reason = reasons.running(case, len(workers), may_grow=not near_end(case))
        started = with_(status, started_at=now_s) if status.started_at is None else status
        started = structs.replace(started, preempted_for=None)
        return enter(replace(case, status=started), Phase.RUNNING, reason, now_s)
    lack = reasons.waiting(case, grant, snapshot)
    if status.started_at is None:
        return enter(case, Phase.PENDING, lack, now_s)
    preempted_for = grant.preempted_for or status.preempted_for
    held = enter(case, Phase.HOLDING, lack, now_s)
    held = replace(held, status=structs.replace(held.status, preempted_for=preempted_for))
    if not may_time_out(held):
        return held
    deadline = held.status.since + spec.hold_timeout_s
    return replace(held, wake_at=min(deadline, case.wake_at or deadline))


def _plan(
    case: Case,
    workers: tuple[PlannedWorker, ...],
    spares: tuple[PlannedWorker, ...],
    snapshot: Snapshot,
    reason: str,
    config: ReconcileConfig,
) -> Plan | None:
    """The next plan, None if it would say what the present one says."""
    old = case.job.plan.value if case.job.plan else None
    driver_node = _driver_node(case, workers, snapshot)
    if old is None and not workers:
        return None
    if old is not None and (old.workers, old.spares, old.driver_node) == (workers, spares, driver_node):
        return None
    if old is not None and (old.workers, old.spares) == (workers, spares):
        reason = f"the driver moves to {driver_node}" if driver_node else "the driver leaves after the last worker"
    numbers = [worker_number(w.worker) for w in (*workers, *spares)]
    return Plan(
        revision=1 if old is None else old.revision + 1,
        workers=workers,
        driver_node=driver_node,
        reason=reason,
        next_worker=max([old.next_worker if old else 1, *(n + 1 for n in numbers)]),
        leader_epoch=config.leader_epoch,
        spares=spares,
    )


def _driver_node(case: Case, workers: tuple[PlannedWorker, ...], snapshot: Snapshot) -> str | None:
    """Stay while the node lives: moving the driver costs more than a driver away from its workers does."""
    if case.job.spec.value.kind in WORLDLESS:
        return None
    if not workers:
        return _last_driver_node(case, snapshot)
    old = case.job.plan.value.driver_node if case.job.plan else None
    if old is not None and _takes_drivers(old, snapshot):
        return old
    return next((w.node for w in workers if _takes_drivers(w.node, snapshot)), workers[0].node)


def _last_driver_node(case: Case, snapshot: Snapshot) -> str | None:
    """Where the driver stays until the last worker has left: it is the driver that calls them to the gate."""
    old = case.job.plan.value.driver_node if case.job.plan else None
    ends = case.clear is not None and case.status.phase is not Phase.STOPPING
    leave = not ends and (case.crew.living or case.crew.leaving)
    return old if leave and (old in snapshot.nodes or old in snapshot.unknown_nodes) else None


def _takes_drivers(node: str, snapshot: Snapshot) -> bool:
    record = snapshot.nodes.get(node)
    return node in snapshot.unknown_nodes if record is None else not record.draining


def _update(case: Case, plan: Plan | None, now_s: float) -> list[Action]:
    at = case.job.status
    if plan is None and at is not None and at.value == case.status:
        return []
    plan_version = case.job.plan.version if case.job.plan else None
    events = tuple(_events(case, plan, now_s))
    return [UpdateJob(case.job.name, case.status, at.version if at else None, plan, plan_version, events)]


def _events(case: Case, plan: Plan | None, now_s: float) -> list[Event]:
    events = [
        Event(at=now_s, kind="worker", text=death.text, fields={"worker": death.worker.worker, "counts": death.counts})
        for death in ((*case.crew.dead, *case.crew.lost_spares) if plan is not None else ())
    ]
    if plan is not None:
        fields: dict[str, str | int | float | bool | None] = {
            "revision": plan.revision,
            "from": len(case.workers),
            "to": len(plan.workers),
            "spares": len(plan.spares),
            "driver_node": plan.driver_node,
        }
        events.append(Event(at=now_s, kind="plan", text=plan.reason, fields=fields))
    before: At[JobStatus] | None = case.job.status
    if before is None or before.value.phase is not case.status.phase:
        phase_fields: dict[str, str | int | float | bool | None] = {
            "phase": case.status.phase.value,
            "attempt": case.status.attempt,
        }
        text = f"{case.status.phase}: {case.status.reason}"
        events.append(Event(at=now_s, kind="job", text=text, fields=phase_fields))
    return events


def _rubbish(case: Case, snapshot: Snapshot, config: ReconcileConfig) -> list[Action]:
    """Old records of ended workers and old events, oldest first."""
    planned = {w.worker for w in (*case.workers, *case.spares)}
    ended = [n for n, at in case.job.workers.items() if n not in planned and is_over(at.value, snapshot)]
    ended.sort(key=worker_number)
    old_workers = ended[: max(0, len(ended) - config.max_ended_workers)]
    old_events = case.job.events[: max(0, len(case.job.events) - config.max_events)]
    forget: list[Action] = [ForgetWorker(case.job.name, n, case.job.workers[n].version) for n in old_workers]
    return forget + [ForgetEvent(case.job.name, e.name, e.version) for e in old_events]
