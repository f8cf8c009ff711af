"""Why a job has the workers that it has, in sentences for people. [pure]"""

from collections.abc import Sequence

from edl_collective.coord.records import JobKind, PlannedWorker
from jobserver.allocate import Grant
from jobserver.judge import Case, some
from jobserver.snapshot import Snapshot


def running(case: Case, count: int, *, may_grow: bool) -> str:
    """Of a job that has `count` workers, at least its minimum."""
    assert case.wanted is not None, "only a job that asks gets workers"
    reason = f"{workers_text(count)}: {case.wanted.reason}"
    if count < case.wanted.np and may_grow:
        reason += f"; {case.wanted.np - count} more {_when(case)}"
    return reason


def waiting(case: Case, grant: Grant, snapshot: Snapshot) -> str:
    """Of a job that has less than its minimum."""
    min_np = case.job.spec.value.min_np
    if case.held_back_until is not None and not grant.missing:
        return f"min_np is {min_np}: the next start {_when(case)}"
    if grant.behind is not None:
        return f"min_np is {min_np}: {grant.behind} has waited for too long and begins first"
    if not grant.missing:
        return f"min_np is {min_np}: waiting for slots whose workers are still ending"
    if grant.preempted_for or case.status.preempted_for:
        taker = grant.preempted_for or case.status.preempted_for
        return f"{taker}, which has a higher priority, took its slots: it goes on when min_np {min_np} fit again"
    nodes = [node for node in snapshot.nodes.values() if not node.draining]
    there = f"{sum(node.slots for node in nodes)} slots on {len(nodes)} nodes"
    verb = "is" if grant.missing == 1 else "are"
    text = f"too few slots: min_np is {min_np} and {grant.missing} of them {verb} missing ({there}"
    return f"{text}, less what other jobs use); start a JobClient, or submit with a lower min_np"


def of_plan(case: Case, workers: Sequence[PlannedWorker], spares: Sequence[PlannedWorker]) -> str:
    """What differs from the plan before, and why."""
    assert case.wanted is not None, "only a job that asks gets workers"
    if tuple(workers) == case.workers:
        beside = "1 spare" if len(spares) == 1 else f"{len(spares) or 'no'} spares"
        return "; ".join((*([some(case.news)] if case.news else []), f"{beside} beside the workers"))
    before, after = len(case.workers), len(workers)
    what = f"start with {workers_text(after)}" if not case.workers else f"{before} to {workers_text(after)}"
    if case.news and before == after:
        what = f"replaced, still {workers_text(after)}"
    if after == 0 and case.status.preempted_for is not None:
        return "; ".join((*([some(case.news)] if case.news else []), f"{what}: {case.status.preempted_for} takes them"))
    why = case.wanted.reason if after >= case.wanted.np else f"{case.wanted.np} are wanted ({case.wanted.reason})"
    return "; ".join((*([some(case.news)] if case.news else []), f"{what}: {why}"))


def workers_text(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _when(case: Case) -> str:
    if case.held_back_until is None:
        return "when slots become free"
    who = "teachers" if case.job.spec.value.kind is JobKind.TEACHER else "standbys"
    return f"after a pause, because {case.status.standby_deaths} {who} in a row have died"
