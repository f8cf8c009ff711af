"""What a fault may cost, and whether it cost more. [pure]

The limits are what must hold on a busy machine, not what is usual: docs/failures.md has the usual.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

#: no collective fails: no step is kept waiting this long
NO_STOP_S = 1.0
#: workers die, leave or join: the survivors train again within this time; gloo alone would take 10 s to notice
REFORM_S = 3.0
#: a worker hangs: gloo's time-out, the time that it has to come back (return_timeout_s) and the next world
HUNG_S = 10.0 + 5.0 + REFORM_S
#: a node is gone without a word: its session has to end first
NODE_LOST_S = 1.0
#: from the fault to a resize that is done; where a session has to end first, its time-out comes on top
RESIZE_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. resize_s: None where the fault itself is a change of the world."""

    pause_s: float
    resize_s: float | None = None

    def times(self, slack: float) -> Self:
        """The same for a machine that is so much slower."""
        resize_s = None if self.resize_s is None else self.resize_s * slack
        return type(self)(self.pause_s * slack, resize_s)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one fault cost. pause_s: the longest time without a completed step of any worker while it was done and
    mended. resize_s: from the fault to the first step of a world of another size. unasked_worlds: worlds that the job
    formed beyond those of the resizes that were asked for, where the fault is to change none."""

    pause_s: float
    lost_steps: int
    doubled_samples: int
    missing_samples: int
    resize_s: float | None = None
    unasked_worlds: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One fault: `cost` is None when it was not done, or the job did not come back; `why` then says so."""

    fault: str
    limits: Limits
    cost: Cost | None = None
    #: None: not done here, which is no failure
    passed: bool | None = None
    why: str = ""

    def plain(self) -> Mapping[str, object]:
        """For JSON."""
        cost = self.cost
        return {
            "fault": self.fault,
            "pause_s": None if cost is None else round(cost.pause_s, 3),
            "pause_limit_s": self.limits.pause_s,
            "resize_s": None if cost is None or cost.resize_s is None else round(cost.resize_s, 3),
            "resize_limit_s": self.limits.resize_s,
            "lost_steps": None if cost is None else cost.lost_steps,
            "doubled_samples": None if cost is None else cost.doubled_samples,
            "missing_samples": None if cost is None else cost.missing_samples,
            "unasked_worlds": None if cost is None else cost.unasked_worlds,
            "passed": self.passed,
            "why": self.why,
        }


@dataclass(slots=True)
class Book:
    """The rows of a drill, in order."""

    rows: list[Row] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Something was done, and nothing of it failed."""
        return any(row.passed for row in self.rows) and not any(row.passed is False for row in self.rows)


def judge(fault: str, cost: Cost, limits: Limits) -> Row:
    """The row of a fault that the job came back from."""
    faults = []
    if cost.pause_s > limits.pause_s:
        faults.append(f"paused {cost.pause_s:.2f} s, limit {limits.pause_s:g} s")
    if cost.resize_s is not None and limits.resize_s is not None and cost.resize_s > limits.resize_s:
        faults.append(f"resized after {cost.resize_s:.2f} s, limit {limits.resize_s:g} s")
    for count, what in (
        (cost.lost_steps, "steps done again"),
        (cost.doubled_samples, "samples doubled"),
        (cost.missing_samples, "samples missing"),
        (cost.unasked_worlds, "worlds formed that nobody asked for"),
    ):
        if count:
            faults.append(f"{count} {what}")
    return Row(fault, limits, cost, not faults, "; ".join(faults))
