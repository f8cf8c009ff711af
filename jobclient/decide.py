"""What a JobClient does next, from the plans of the jobs and the processes of its node. [pure]

Level-triggered: the same view gives the same actions, and an action that has been applied shows in the next view, so
that applying twice is harmless and a crash between any two actions loses nothing. A worker id is started at most once
in its life; a slot never holds two workers. Placement is the JobServer's, the world is the driver's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edl_collective.coord.records import (
    JobKind,
    JobSpec,
    JobStatus,
    NodeRecord,
    Outcome,
    Plan,
    PlannedWorker,
    Rendezvous,
    WorkerRecord,
)
from jobclient.stop_times import DEFAULT_STOP_TIMEOUT_S, stop_timeout_s
from jobclient.worker_env import gloo_timeout_s

#: (job, when it was submitted): tells a job from one of the same name that was submitted after it was removed
Submission = tuple[str, float]
#: between two questions to a worker that has not come back from an aborted generation
ASK_AGAIN_S = 1.0
#: a dead driver is started again at once, then after pauses that double with each death until it lives long enough
FIRST_DRIVER_PAUSE_S = 0.1
#: so that a job whose driver was killed again and again can be resized within 3 s all the same
LONGEST_DRIVER_PAUSE_S = 2.0
HEALTHY_DRIVER_S = 10.0
#: how long a driver that has lost its session may take to be back; one that stands still never is
HUNG_DRIVER_S = 5.0


@dataclass(frozen=True, slots=True)
class JobView:
    """What ZooKeeper says of one job; a record that is not there, or does not parse, is None."""

    spec: JobSpec | None = None
    plan: Plan | None = None
    status: JobStatus | None = None
    rendezvous: Rendezvous | None = None
    workers: Mapping[str, WorkerRecord] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Nothing of it will run any more."""
        return self.spec is None or (self.status is not None and self.status.phase.terminal)


@dataclass(frozen=True, slots=True)
class LocalWorker:
    """A worker of this node from its start until its slot is free and its exit is recorded."""

    job: str
    worker: str
    slot: int
    #: it has never been at the gate, so no world can hold it
    cold: bool
    #: of the job that it was started for
    submitted_at: float = 0.0
    #: monotonic time of its start, package hook included; None before
    started_s: float | None = None
    #: set while it is to come back from an aborted generation
    missing: "Missing | None" = None
    #: monotonic time by which it must have left; None while it is not asked to
    leave_by_s: float | None = None
    #: the stop ladder has begun
    stopping: bool = False
    #: the process has ended (what it left behind may still be cleared away)
    exited: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """A worker whose generation was aborted and that has not come back to the gate; times are monotonic."""

    asked_s: float
    #: since when a question waits for its answer; None: it has answered the last one
    silent_since_s: float | None
    #: since when all its answers say that it is inside Horovod; None: it is busy elsewhere, which is its right
    inside_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class LocalDriver:
    """The driver of one job as this node knows it; kept after its death for the pause before the next."""

    job: str
    running: bool
    #: of the job that it was started for
    submitted_at: float = 0.0
    stopping: bool = False
    deaths: int = 0
    #: monotonic time before which it is not started again
    not_before_s: float = 0.0
    #: its record was seen in ZooKeeper
    registered: bool = False
    #: monotonic time since which it runs without its record in ZooKeeper, which it had: its session has ended
    missing_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class View:
    """Everything that a decision rests on."""

    node: NodeRecord
    jobs: Mapping[str, JobView]
    workers: tuple[LocalWorker, ...] = ()
    drivers: tuple[LocalDriver, ...] = ()
    #: the JobClient itself is to end; it goes on asking the JobServer for a plan without this node
    closing: bool = False
    #: somebody drains this node: it starts nothing
    drained: bool = False
    #: monotonic time by which all workers must have left; None: each job's leave_timeout_s counts
    leave_by_s: float | None = None


@dataclass(frozen=True, slots=True)
class StartWorker:
    job: str
    planned: PlannedWorker
    reason: str


@dataclass(frozen=True, slots=True)
class LetLeave:
    """Give the driver until `leave_by_s` (monotonic) to take the worker out of the world at a step boundary."""

    job: str
    worker: str
    leave_by_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class StopWorker:
    """The stop ladder: SIGTERM to the group, SIGKILL after `timeout_s`."""

    job: str
    worker: str
    timeout_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class AskBack:
    """Tell the worker again that its generation is over, and hear whether it lives."""

    job: str
    worker: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """SIGKILL at once: the worker hangs. `reason` completes the sentence "worker w3 ..."."""

    job: str
    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class StartDriver:
    job: str
    reason: str


@dataclass(frozen=True, slots=True)
class StopDriver:
    job: str
    timeout_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class KillDriver:
    """SIGKILL at once: the driver hangs."""

    job: str
    reason: str


Action = StartWorker | LetLeave | StopWorker | AskBack | GiveUp | StartDriver | StopDriver | KillDriver

_CLOSING = "the JobClient is stopping"


@dataclass(frozen=True, slots=True)
class Decision:
    actions: tuple[Action, ...]
    #: monotonic time at which to decide again though nothing changed; None: no need
    wake_at_s: float | None = None


def decide(view: View, now_s: float) -> Decision:
    """The actions that are due at `now_s` (monotonic), and when to look again."""
    wakes: list[float] = []
    actions: list[Action] = []
    for local in sorted(view.workers, key=lambda w: (w.job, w.worker)):
        action = _keep_or_stop(view, local, now_s, wakes) or _hangs(view, local, now_s, wakes)
        if action is not None:
            actions.append(action)
    actions += _starts(view)
    actions += _drivers(view, now_s, wakes)
    return Decision(tuple(actions), min(wakes, default=None))


def answerable(view: View) -> tuple[str, ...]:
    """Jobs whose driver waits to hear from this node: their world has, or had in an earlier life, a member here."""
    return tuple(
        name
        for name, job in sorted(view.jobs.items())
        if not view.closing
        and not _ended(job)
        and job.rendezvous is not None
        and any(m.node == view.node.node for m in job.rendezvous.members)
    )


def outcome(exit_code: int, *, said_finished: bool, told_to_leave: bool, aborted: bool = False) -> Outcome:
    """How a worker ended: an exit of 0 counts as finished unless it was told to leave and never said so.

    aborted: it was killed in Horovod's init, for the death of another.
    """
    if exit_code == 0 and (said_finished or not told_to_leave):
        return Outcome.FINISHED
    if told_to_leave:
        return Outcome.LEFT
    return Outcome.ABORTED if aborted else Outcome.FAILED


def driver_seen(driver: LocalDriver, registered: bool, now_s: float) -> LocalDriver:
    """The running driver after a look at ZooKeeper: one that was there and is missing has lost its session."""
    if registered:
        return replace(driver, registered=True, missing_since_s=None)
    if driver.registered and driver.missing_since_s is None:
        return replace(driver, missing_since_s=now_s)
    return driver


def driver_died(driver: LocalDriver, *, lived_s: float, now_s: float) -> LocalDriver:
    """The driver after its process ended: when it may start again."""
    deaths = 1 if lived_s >= HEALTHY_DRIVER_S else driver.deaths + 1
    pause_s = 0.0 if deaths == 1 else min(LONGEST_DRIVER_PAUSE_S, FIRST_DRIVER_PAUSE_S * 2 ** min(deaths - 2, 16))
    return LocalDriver(driver.job, False, driver.submitted_at, deaths=deaths, not_before_s=now_s + pause_s)


def _ended(job: JobView | None) -> str | None:
    """Why nothing of the job may run, None if it may."""
    if job is None or job.spec is None:
        return "the job was removed"
    if job.status is not None and job.status.phase.terminal:
        return f"the job is {job.status.phase.value}"
    return None


def _submitted_again(job: JobView | None, submitted_at: float) -> str | None:
    """Why what was started for the job that was submitted then may not go on, None if it is this one."""
    if job is None or job.spec is None or job.spec.submitted_at == submitted_at:
        return None
    return "the job was removed and another of that name submitted"


def _mine(view: View, job: JobView) -> tuple[PlannedWorker, ...]:
    """What the plan puts here and this node can start."""
    if view.closing or _ended(job) or job.spec is None or job.spec.kind is JobKind.EXTERNAL or job.plan is None:
        return ()
    return tuple(p for p in job.plan.everybody if p.node == view.node.node and 0 <= p.slot < view.node.slots)


def _keep_or_stop(view: View, local: LocalWorker, now_s: float, wakes: list[float]) -> Action | None:
    if local.exited or local.stopping:
        return None
    job = view.jobs.get(local.job)
    spec = job.spec if job else None
    timeout_s = stop_timeout_s(spec, view.leave_by_s, now_s)
    why = _submitted_again(job, local.submitted_at) or _ended(job)
    if why is not None or job is None or spec is None:
        return StopWorker(local.job, local.worker, timeout_s, why or "the job was removed")
    if view.leave_by_s is not None:
        if now_s >= view.leave_by_s:
            return StopWorker(local.job, local.worker, timeout_s, "it did not leave by the deadline of the drain")
        wakes.append(view.leave_by_s)
    if any(p.worker == local.worker for p in _mine(view, job)) or (job.plan is None and not view.closing):
        return None  # a plan that cannot be read stops nobody
    reason = _CLOSING if view.closing or job.plan is None else f"plan {job.plan.revision}: {job.plan.reason}"
    if local.cold:
        return StopWorker(local.job, local.worker, timeout_s, reason)
    if local.leave_by_s is None:
        leave_by_s = now_s + spec.leave_timeout_s if view.leave_by_s is None else view.leave_by_s
        wakes.append(leave_by_s)
        return LetLeave(local.job, local.worker, leave_by_s, reason)
    if now_s >= local.leave_by_s:
        late = f"it did not leave in time (leave_timeout_s is {spec.leave_timeout_s:g}); {reason}"
        return StopWorker(local.job, local.worker, timeout_s, late)
    wakes.append(local.leave_by_s)
    return None


def _hangs(view: View, local: LocalWorker, now_s: float, wakes: list[float]) -> Action | None:
    """Give up a worker that does not get warm, or does not come back from an aborted generation.

    Nothing else has a time-out: a step, an evaluation or a checkpoint may take as long as it takes. Nor has a teacher:
    one that hangs loses its place in its service, and its students.
    """
    job = view.jobs.get(local.job)
    if local.exited or local.stopping or job is None or job.spec is None or job.spec.kind is JobKind.TEACHER:
        return None
    spec = job.spec
    deadlines: list[tuple[float, str]] = []
    if local.cold and local.started_s is not None:
        text = f"did not reach the gate within warm_timeout_s = {spec.warm_timeout_s:g}"
        deadlines.append((local.started_s + spec.warm_timeout_s, text))
    missing = local.missing
    if missing is not None and missing.silent_since_s is not None:
        text = f"was silent for return_timeout_s = {spec.return_timeout_s:g} after an abort"
        deadlines.append((missing.silent_since_s + spec.return_timeout_s, text))
    if missing is not None and missing.inside_since_s is not None:
        limit_s = gloo_timeout_s(spec) + spec.return_timeout_s
        text = f"hung in Horovod for {limit_s:g} s after an abort (return_timeout_s is {spec.return_timeout_s:g})"
        deadlines.append((missing.inside_since_s + limit_s, text))
    due = [text for deadline_s, text in deadlines if now_s >= deadline_s]
    if due:
        return GiveUp(local.job, local.worker, due[0])
    wakes += [deadline_s for deadline_s, _ in deadlines]
    if missing is None:
        return None
    if now_s >= missing.asked_s + ASK_AGAIN_S:
        return AskBack(local.job, local.worker)
    wakes.append(missing.asked_s + ASK_AGAIN_S)
    return None


def _starts(view: View) -> list[Action]:
    """Planned workers that never ran and whose slot is free, lowest job name first."""
    if view.drained:
        return []
    taken = {w.slot for w in view.workers}
    here = {(w.job, w.worker) for w in view.workers}
    starts: list[Action] = []
    for name, job in sorted(view.jobs.items()):
        for planned in _mine(view, job):
            known = (name, planned.worker) in here or planned.worker in job.workers
            if not known and planned.slot not in taken:
                assert job.plan is not None
                taken.add(planned.slot)
                starts.append(StartWorker(name, planned, f"plan {job.plan.revision}: {job.plan.reason}"))
    return starts


def _drivers(view: View, now_s: float, wakes: list[float]) -> list[Action]:
    drivers = {d.job: d for d in view.drivers}
    actions: list[Action] = []
    for name in sorted(view.jobs.keys() | drivers.keys()):
        job = view.jobs.get(name, JobView())
        driver = drivers.get(name, LocalDriver(name, running=False))
        of_another = _submitted_again(job, driver.submitted_at)
        if of_another and not driver.running:
            driver = LocalDriver(name, running=False)  # how often that one died is no matter for this one
        why_not = _no_driver_here(view, job)
        if view.closing:
            # It outlives the workers of its node, so that their leaving reaches the others; it is not started again.
            busy = any(w.job == name and not w.exited for w in view.workers)
            why_not = None if busy and driver.running else _CLOSING
        if driver.running:
            why_not = of_another or why_not
        hung_at_s = None if driver.missing_since_s is None else driver.missing_since_s + HUNG_DRIVER_S
        if driver.running and hung_at_s is not None and now_s >= hung_at_s:
            actions.append(KillDriver(name, f"it has not been in ZooKeeper for {HUNG_DRIVER_S:g} s"))
        elif driver.running and why_not and not driver.stopping:
            timeout_s = job.spec.stop_timeout_s if job.spec else DEFAULT_STOP_TIMEOUT_S
            actions.append(StopDriver(name, timeout_s, why_not))
        elif not driver.running and not why_not:
            if now_s >= driver.not_before_s:
                again = f" again after {driver.deaths} deaths" if driver.deaths else ""
                actions.append(StartDriver(name, f"the plan puts it here{again}"))
            else:
                wakes.append(driver.not_before_s)
        elif hung_at_s is not None:
            wakes.append(hung_at_s)
    return actions


def _no_driver_here(view: View, job: JobView) -> str | None:
    """Why this node may not run the job's driver; None if it has to."""
    why = _ended(job)
    if why is not None or job.spec is None:
        return why or "the job was removed"
    if job.spec.kind is JobKind.EXTERNAL:
        return "horovodrun launches this job"
    if job.plan is None or job.plan.driver_node is None:
        return "the plan has none"
    if job.plan.driver_node != view.node.node:
        return f"the plan puts it on {job.plan.driver_node}"
    return None
