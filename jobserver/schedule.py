"""How many workers a job wants at a moment. [pure]

Invariant: the answer depends only on the arguments, lies within [min_np, max_np], and comes with the reason and the
time at which it may change by time alone. It says nothing about what is free: that is allocate's part.
"""

import itertools
import math
from dataclasses import dataclass

from edl_collective.coord.job_spec import ChangeRule, JobSpec, Schedule
from edl_collective.coord.records import Progress


@dataclass(frozen=True, slots=True)
class Wanted:
    """`wake_at`: wall time in seconds at which the answer may differ, None if only an event can change it."""

    np: int
    reason: str
    wake_at: float | None = None


def wanted(
    spec: JobSpec, progress: Progress | None, started_at: float | None, now_s: float, changes: int = 0
) -> Wanted:
    """The wanted number of workers.

    started_at, now_s: wall times in seconds; a job not started is at 0 s.
    changes: how many changes its ChangeRule has made; when the next one is due, `change_due_at` says.
    """
    if spec.np is not None:
        return Wanted(spec.np, f"np {spec.np} was asked for")
    schedule = spec.schedule
    elapsed_s = 0.0 if started_at is None else max(0.0, now_s - started_at)
    found: Wanted | None = None
    if schedule is not None and schedule.epochs:
        found = _by_epoch(schedule, 0 if progress is None else progress.epoch)
    elif schedule is not None and schedule.times:
        found = _by_time(schedule, spec.max_np, elapsed_s)
    elif schedule is not None and schedule.change is not None:
        found = _by_rule(schedule.change, spec, changes)
    if found is None:
        return Wanted(spec.max_np, f"as many as fit up to max_np {spec.max_np}")
    wake_at = None if found.wake_at is None or started_at is None else started_at + found.wake_at
    return Wanted(min(max(found.np, spec.min_np), spec.max_np), found.reason, wake_at)


def check_schedule(spec: JobSpec) -> None:
    """Raise ValueError if the schedule of `spec` leaves something open or asks for what its bounds forbid."""
    schedule = spec.schedule
    if schedule is None:
        return
    if sum((bool(schedule.epochs), bool(schedule.times), schedule.change is not None)) != 1:
        raise ValueError("schedule: give exactly one of epochs, times and change")
    starts: list[float] = [step.epoch for step in schedule.epochs] or [step.after_s for step in schedule.times]
    if starts and (starts[0] < 0 or any(b <= a for a, b in itertools.pairwise(starts))):
        raise ValueError(f"schedule: steps must rise from 0 or later, not {', '.join(f'{s:g}' for s in starts)}")
    for np in [step.np for step in schedule.epochs] + [step.np for step in schedule.times]:
        if not spec.min_np <= np <= spec.max_np:
            raise ValueError(f"schedule: np {np} must be between min_np {spec.min_np} and max_np {spec.max_np}")
    change = schedule.change
    if change is not None and not (0 < change.every_s < math.inf and change.add >= 0 and change.remove >= 0):
        raise ValueError("schedule: change needs every_s above 0, add and remove of at least 0")


def _by_epoch(schedule: Schedule, epoch: int) -> Wanted | None:
    reached = [step for step in schedule.epochs if step.epoch <= epoch]
    if not reached:
        return None
    step = max(reached, key=lambda s: s.epoch)
    return Wanted(step.np, f"the schedule asks for {step.np} from epoch {step.epoch}")


def _by_time(schedule: Schedule, max_np: int, elapsed_s: float) -> Wanted:
    coming = min((s.after_s for s in schedule.times if s.after_s > elapsed_s), default=None)
    reached = [step for step in schedule.times if step.after_s <= elapsed_s]
    if not reached:
        return Wanted(max_np, "as many as fit before the first step of the schedule", coming)
    step = max(reached, key=lambda s: s.after_s)
    return Wanted(step.np, f"the schedule asks for {step.np} from {step.after_s:g} s", coming)


def change_due_at(spec: JobSpec, changed_at: float | None) -> float | None:
    """Wall time of the next change of the job's rule; None without a rule, or while the last one has no effect yet."""
    rule = spec.schedule.change if spec.schedule is not None and spec.np is None else None
    return None if rule is None or changed_at is None else changed_at + rule.every_s


def _by_rule(rule: ChangeRule, spec: JobSpec, changes: int) -> Wanted:
    """Start at max_np; then in turn take `remove` away and give `add` back."""
    np = spec.max_np
    for _ in range(changes // 2):
        after = min(max(np - rule.remove, spec.min_np) + rule.add, spec.max_np)
        if after == np:  # the pair repeats itself from here on
            break
        np = after
    reason = f"the changing rule begins with {np}"
    if changes % 2 == 1:
        np = max(np - rule.remove, spec.min_np)
        reason = f"change {changes} of the changing rule: down to {np}"
    elif changes:
        reason = f"change {changes} of the changing rule: up to {np}"
    return Wanted(np, reason)
