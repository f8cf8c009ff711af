"""What the records of one job say by themselves: its deaths, its phase, and whether it asks for slots. [pure]

Invariant: a death is counted only by a decision that also takes the dead out of the plan, so it is counted once.
What depends on other jobs (which slots are free) is left open here: `Case.clear` is None.
"""

from dataclasses import dataclass, replace

from msgspec import structs

from edl_collective.coord.records import JobKind, JobStatus, Phase, PlannedWorker
from jobserver.allocate import worker_number
from jobserver.gain import Outlook, remember
from jobserver.job_state import (
    Crew,
    check_transition,
    is_new_attempt,
    is_whole,
    living_saver,
    saver_finished,
    still_training,
)
from jobserver.schedule import Wanted, change_due_at, wanted
from jobserver.snapshot import Job, Slot
from jobserver.teacher_rule import ask, follows_students
from jobserver.teacher_rule import wanted as teachers_wanted

MAX_TAIL_CHARS = 2000
MAX_NEWS = 8
#: after the second standby in a row that died beside a running world the next ones wait 1 s, then 2, 4, ...
LONGEST_STANDBY_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """A job on its way through the decision: what was read, and the status as far as it is decided."""

    job: Job
    crew: Crew
    status: JobStatus
    wanted: Wanted | None = None
    wake_at: float | None = None
    #: what happened to workers, for the plan's reason and the events
    news: tuple[str, ...] = ()
    #: True: the plan becomes empty; None: allocate decides; False: the plan stays
    clear: bool | None = None
    #: no standby starts before that wall time, unless the job is below its minimum
    held_back_until: float | None = None

    @property
    def workers(self) -> tuple[PlannedWorker, ...]:
        return self.job.plan.value.workers if self.job.plan else ()

    @property
    def spares(self) -> tuple[PlannedWorker, ...]:
        return self.job.plan.value.spares if self.job.plan else ()


def judge(job: Job, crew: Crew, now_s: float, finish_timeout_s: float, save_timeout_s: float) -> Case:
    """Everything about a job that does not depend on other jobs."""
    case = Case(job, crew, job.status.value if job.status else _first_status(job, now_s), clear=False)
    status = case.status
    if status.phase.terminal:
        return case
    if job.spec.value.stopped:
        return _stop(case, now_s)
    if crew.finished:
        return _finish(case, now_s, finish_timeout_s, save_timeout_s)
    return _ask(_note_speed(_count(case, now_s)), now_s)


def _first_status(job: Job, now_s: float) -> JobStatus:
    """The status of a job that has none: new, unless somebody removed the record of a job that runs."""
    if job.plan is None:
        return JobStatus(phase=Phase.PENDING, reason="", since=now_s)
    return JobStatus(phase=Phase.RUNNING, reason="", since=now_s, started_at=now_s)


def enter(case: Case, phase: Phase, reason: str, now_s: float) -> Case:
    before = case.status.phase
    check_transition(case.job.name, before, phase)
    since = case.status.since if phase is before else now_s
    return replace(case, status=with_(case.status, phase=phase, reason=reason, since=since))


def with_(
    status: JobStatus,
    *,
    phase: Phase | None = None,
    reason: str | None = None,
    since: float | None = None,
    started_at: float | None = None,
    counts: tuple[int, int, int, int] | None = None,
) -> JobStatus:
    attempt, failures, restarts, epoch_seen = counts or (
        status.attempt,
        status.failures,
        status.restarts,
        status.epoch_seen,
    )
    return structs.replace(
        status,
        phase=status.phase if phase is None else phase,
        reason=status.reason if reason is None else reason,
        since=status.since if since is None else since,
        started_at=status.started_at if started_at is None else started_at,
        attempt=attempt,
        failures=failures,
        restarts=restarts,
        epoch_seen=epoch_seen,
    )


def _stop(case: Case, now_s: float) -> Case:
    if not case.crew.living and not case.crew.leaving:
        stopped = enter(case, Phase.STOPPED, "stopped as asked", now_s)
        return replace(stopped, clear=True)
    if case.job.spec.value.kind is JobKind.EXTERNAL:
        return replace(enter(case, Phase.STOPPED, "stopped as asked; end its horovodrun too", now_s), clear=True)
    return replace(enter(case, Phase.STOPPING, "stop was asked for: waiting for its workers", now_s), clear=True)


def _count(case: Case, now_s: float) -> Case:
    """Count deaths and attempts; a completed epoch clears the counters first."""
    job, crew = case.job, case.crew
    status = _count_standbys(case, now_s)
    epoch = 0 if job.progress is None else job.progress.epoch
    attempt, failures, restarts = status.attempt, status.failures, status.restarts
    if epoch > status.epoch_seen:
        failures = restarts = 0
    failures += sum(death.counts for death in crew.dead)
    if job.spec.value.kind is JobKind.TEACHER:  # those in a row: one that gets to serve shows that its command can
        failures = status.standby_deaths
    news = [death.text for death in (*crew.dead, *crew.lost_spares)]
    if crew.dead and is_new_attempt(job, case.crew):
        attempt, restarts = attempt + 1, restarts + 1
        news.append(f"no worker with the training state is left: attempt {attempt}")
    counts = (attempt, failures, restarts, max(epoch, status.epoch_seen))
    return replace(case, status=with_(status, counts=counts), news=tuple(news))


def _count_standbys(case: Case, now_s: float) -> JobStatus:
    """Standbys that die cost the job nothing: they are not its failures, but the next ones come ever later.

    One that gets to the gate shows that the fault is gone, if it started later than the last that died. So it is with
    teachers, and with getting into the listing of their service.
    """
    status, crew = case.status, case.crew
    died = [worker_number(death.worker.worker) for death in (*crew.dead, *crew.lost_spares) if death.standby]
    if not died and not status.standby_deaths:
        return status
    newest = max([status.standby_newest, *died])
    warm = max((worker_number(w.worker) for w in (*crew.living, *crew.spares) if w.worker in crew.warm), default=0)
    deaths = 0 if warm > newest else status.standby_deaths + len(died)
    died_at = now_s if died else status.standby_died_at
    return structs.replace(status, standby_deaths=deaths, standby_newest=newest, standby_died_at=died_at)


def _standby_due_at(status: JobStatus) -> float:
    """Wall time before which no standby starts."""
    if status.standby_deaths < 2:
        return 0.0
    return status.standby_died_at + min(LONGEST_STANDBY_PAUSE_S, 2.0 ** min(status.standby_deaths - 2, 16))


def _exhausted(case: Case) -> str | None:
    """Why no more tries are made, or None."""
    spec, status = case.job.spec.value, case.status
    if status.failures > spec.max_failures:
        what = "worker failures since the last completed epoch"
        if spec.kind is JobKind.TEACHER:
            what = "teachers failed in a row before one served"
        why = f"{status.failures} {what}; max_failures is {spec.max_failures}"
    elif status.restarts > spec.max_restarts:
        why = f"all workers died {status.restarts} times since the last completed epoch; "
        why += f"max_restarts is {spec.max_restarts}"
    else:
        return None
    tail = next((death.log_tail for death in reversed(case.crew.dead) if death.log_tail), "")[-MAX_TAIL_CHARS:]
    last = f"; {case.crew.dead[-1].text}" if case.crew.dead else ""
    return f"{why}{last}" + (f"; the end of its log:\n{tail}" if tail else "")


def _finish(case: Case, now_s: float, finish_timeout_s: float, save_timeout_s: float) -> Case:
    """A worker's training returned: nobody joins any more, the others get time to end."""
    saver = living_saver(case.job, case.crew)
    if saver is not None:
        return _await_saver(case, saver, now_s, save_timeout_s)
    saved = saver_finished(case.job, case.crew)
    entered = enter(case, Phase.FINISHING, "a worker finished: waiting for the others", now_s)
    if saved and entered.status.saved_at is None:
        entered = replace(entered, status=structs.replace(entered.status, saved_at=now_s))
    begun_at = entered.status.since if entered.status.saved_at is None else entered.status.saved_at
    deadline = begun_at + finish_timeout_s
    training = still_training(case.job, case.crew)
    if training and now_s < deadline:
        return replace(entered, wake_at=deadline)
    if not saved:
        return _retry_unsaved(entered, "rank 0 did not finish", now_s)
    reason = "training finished"
    if training:
        slow = ", ".join(w.worker for w in training)
        reason += f"; {slow} did not end within finish_timeout_s {finish_timeout_s:g} and are stopped"
    if case.crew.dead:
        reason += "; " + some(tuple(death.text for death in case.crew.dead))
    return replace(enter(entered, Phase.SUCCEEDED, reason, now_s), clear=True)


def _await_saver(case: Case, saver: PlannedWorker, now_s: float, save_timeout_s: float) -> Case:
    """Rank 0 lives after others returned: it may evaluate or write the last checkpoint, so it is not cut short.

    Nor is any other worker meanwhile, because rank 0 may need it.
    """
    bound = f"save_timeout_s {save_timeout_s:g}"
    reason = f"a worker finished: waiting for {saver.worker} (rank 0), which saves, for at most {bound}"
    entered = enter(case, Phase.FINISHING, reason, now_s)
    deadline = entered.status.since + save_timeout_s
    if now_s < deadline:
        return replace(entered, wake_at=deadline)
    return _retry_unsaved(entered, f"rank 0 ({saver.worker}) did not finish within {bound}", now_s)


def _retry_unsaved(case: Case, why: str, now_s: float) -> Case:
    """Some returned, but not the worker that saves: what it had not saved is trained again."""
    counted = _count(case, now_s)
    status, crew = counted.status, case.crew
    counts = (status.attempt + 1, status.failures, status.restarts + 1, status.epoch_seen)
    ending = crew.leaving | {Slot(w.node, w.slot) for w in crew.living}
    retry = replace(
        counted,
        status=structs.replace(with_(status, counts=counts), saved_at=None),
        news=(*counted.news, f"{why}: attempt {counts[0]}"),
        crew=Crew(dead=crew.dead, leaving=ending, spares=crew.spares, lost_spares=crew.lost_spares),
    )
    return _ask(retry, now_s)


def _ask(case: Case, now_s: float) -> Case:
    why = _exhausted(case)
    if why is not None:
        counted = case.status
        began = case.job.status.value.attempt if case.job.status else 1  # the next one is not made
        status = with_(counted, counts=(began, counted.failures, counted.restarts, counted.epoch_seen))
        return replace(enter(replace(case, status=status), Phase.FAILED, why, now_s), clear=True)
    spec, status = case.job.spec.value, case.status
    if may_time_out(case) and status.phase is Phase.HOLDING and now_s >= status.since + spec.hold_timeout_s:
        why = f"held below min_np {spec.min_np} for hold_timeout_s {spec.hold_timeout_s:g}"
        if len(case.crew.living) < spec.min_np:
            return replace(enter(case, Phase.FAILED, why, now_s), clear=True)
    case = _ask_students(_next_change(case, now_s), now_s)
    want = _wanted(case, now_s)
    due_at = _standby_due_at(case.status)
    back = due_at if now_s < due_at else None
    wakes = [at for at in (case.wake_at or want.wake_at, back) if at is not None]
    return replace(case, clear=None, wanted=want, wake_at=min(wakes, default=None), held_back_until=back)


def may_time_out(case: Case) -> bool:
    """Whether it matters how long the job holds: students wait as long as they like, the preempted for their turn."""
    return case.job.spec.value.kind is not JobKind.TEACHER and case.status.preempted_for is None


def _note_speed(case: Case) -> Case:
    """Remember what a world of this size does."""
    progress, world = case.job.progress, case.job.rendezvous
    if progress is None or progress.samples_per_s is None or progress.generation != world.generation:
        return case
    speeds = remember(case.status.speeds, progress.world_size, progress.samples_per_s)
    return replace(case, status=structs.replace(case.status, speeds=speeds))


def outlook(case: Case) -> Outlook:
    """What is known of the speed of a job whose size is left open: a size that was asked for needs no reason."""
    spec, progress = case.job.spec.value, case.job.progress
    if spec.np is not None or spec.schedule is not None:
        return Outlook()
    if progress is None:
        return Outlook(case.status.speeds)
    return Outlook(case.status.speeds, progress.pause_s, progress.samples_left)


def _next_change(case: Case, now_s: float) -> Case:
    """The job's rule makes its next change an interval after the last one took effect, and never into a resize."""
    status = case.status
    due_at = change_due_at(case.job.spec.value, status.changed_at)
    if due_at is None or not is_whole(case.job, case.crew):
        return case
    if now_s < due_at:
        return replace(case, wake_at=due_at)
    return replace(case, status=structs.replace(status, changes=status.changes + 1, changed_at=None))


def _ask_students(case: Case, now_s: float) -> Case:
    """Teachers whose number is left to their students: how many it is now."""
    spec, status = case.job.spec.value, case.status
    asked = ask(spec, case.job.fleet, now_s, status.asked) if follows_students(spec) else None
    return replace(case, status=structs.replace(status, asked=asked))


def note_effect(case: Case, now_s: float) -> Case:
    """To be called when the plan stays: from now on the interval of the job's rule counts, if the plan is the world."""
    spec, status = case.job.spec.value, case.status
    if status.changed_at is not None or not is_whole(case.job, case.crew):
        return case
    due_at = change_due_at(spec, now_s)
    if due_at is None:
        return case
    return replace(case, status=structs.replace(status, changed_at=now_s), wake_at=due_at)


def _wanted(case: Case, now_s: float) -> Wanted:
    """The schedule's answer; near the end of training the present size, so that only losses are replaced."""
    spec = case.job.spec.value
    if case.status.asked is not None:
        return teachers_wanted(case.status.asked, now_s)
    want = wanted(spec, case.job.progress, case.status.started_at, now_s, case.status.changes)
    if not near_end(case):
        return want
    size = len(case.workers)
    np = size if spec.min_np <= size <= spec.max_np else want.np  # a job without workers must begin somewhere
    return Wanted(np, f"no resize near the end of training ({want.reason})", want.wake_at)


def some(texts: tuple[str, ...]) -> str:
    """The first of `texts` in one sentence, and how many more there are: a record has a size bound."""
    more = f"; and {len(texts) - MAX_NEWS} more" if len(texts) > MAX_NEWS else ""
    return "; ".join(texts[:MAX_NEWS]) + more


def near_end(case: Case) -> bool:
    """True when rank 0 says that training is about to end."""
    return case.job.progress is not None and case.job.progress.near_end
