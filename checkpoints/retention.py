"""Which attempts in a folder may be removed. [pure]

Invariants:
- Only what is older than a committed, valid checkpoint goes: the newest valid one never does, nor anything at or above
  the attempt that was committed last, which may be a save in progress or the work of a newer driver.
- Nothing pinned goes, and nothing that a later version wrote.
- The remains of a save are dead when a valid checkpoint has a higher (driver epoch, global step): a job saves one at a
  time and in this order, so whoever still writes below was replaced and can never become the newest.
No clock takes part: how old something is says nothing about whether its saver lives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from checkpoints.layout import AttemptName
from checkpoints.train_status import TrainStatus


class Condition(Enum):
    """What a look at an attempt found: sizes are compared, contents are not read."""

    VALID = "valid"
    DAMAGED = "damaged"  # a manifest is there, and it or a shard does not fit
    UNFINISHED = "unfinished"  # no manifest: a save in progress, or one that died
    UNKNOWN = "unknown"  # a manifest of a later version, which is not ours to judge


@dataclass(frozen=True)
class Keep:
    """Which valid checkpoints stay; one that any of these rules keeps is kept.

    Attributes:
        last: so many of the newest, at least 1; None keeps all.
        every_epochs: those at the end of each so many epochs, for ever; None keeps none for that.
        best: so many with the best value of `metric`; of equal ones the newer is better.
        metric: name of a number among the user fields of the train status; without it a checkpoint is not among the
            best.
        mode: whether the highest ("max") or the lowest ("min") value is the best.

    Raises:
        ValueError: on a number out of range, or if best is given without a metric.
    """

    last: int | None = 3
    every_epochs: int | None = None
    best: int = 0
    metric: str = ""
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise ValueError(f"keep must be at least 1, or None to keep all; it is {self.last}")
        if self.every_epochs is not None and self.every_epochs < 1:
            raise ValueError(f"every_epochs must be at least 1; it is {self.every_epochs}")
        if self.best < 0 or (self.best > 0) != bool(self.metric):
            raise ValueError(f"best={self.best} and metric={self.metric!r} go together: give both or neither")
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min'; it is {self.mode!r}")


@dataclass(frozen=True)
class Found:
    """An attempt in the folder; the status is there if and only if its manifest could be read."""

    attempt: AttemptName
    condition: Condition
    status: TrainStatus | None = None
    pinned: bool = False


@dataclass(frozen=True)
class Collect:
    """An attempt that may go, and why."""

    attempt: AttemptName
    reason: str


def collectable(found: Iterable[Found], keep: Keep, ours: AttemptName | None = None) -> list[Collect]:
    """Decide what may be removed, oldest first.

    Args:
        found: every attempt in the folder.
        keep: which valid ones stay.
        ours: the attempt that was committed just now: nothing that is not older goes. None, for who saves nothing,
            takes the newest valid one.
    """
    known = list(found)
    valid = sorted((item for item in known if item.condition is Condition.VALID), key=_order, reverse=True)
    limit = ours if ours is not None else max((item.attempt for item in valid), default=None)
    if limit is None or limit not in {item.attempt for item in valid}:
        return []  # what was committed cannot be seen: no ground to remove anything on
    kept = _kept(valid, keep)
    chosen = [Collect(item.attempt, _why(keep)) for item in valid if item.attempt not in kept and not item.pinned]
    chosen += [
        Collect(item.attempt, f"{item.condition.value}, and older than a valid checkpoint")
        for item in known
        if item.condition in (Condition.DAMAGED, Condition.UNFINISHED)
        and not item.pinned
        and _step(item.attempt) < _step(limit)
    ]
    return sorted((item for item in chosen if item.attempt < limit), key=lambda item: item.attempt)


def why_kept(found: Iterable[Found], keep: Keep) -> dict[AttemptName, str]:
    """For each attempt that `collectable` does not let go, the rule that keeps it, in words."""
    known = list(found)
    gone = {item.attempt for item in collectable(known, keep)}
    valid = sorted((item for item in known if item.condition is Condition.VALID), key=_order, reverse=True)
    rules = [(f"among the last {keep.last}", Keep(keep.last))]
    if keep.every_epochs is not None:
        rules.append((f"the end of one of each {keep.every_epochs} epochs", Keep(1, every_epochs=keep.every_epochs)))
    if keep.best:
        rules.append(
            (
                f"among the best {keep.best} by {keep.metric}",
                Keep(1, best=keep.best, metric=keep.metric, mode=keep.mode),
            )
        )
    by_rule = [(text, _kept(valid, rule)) for text, rule in rules]
    reasons = {}
    for item in known:
        if item.attempt in gone:
            continue
        kept_by = next((text for text, attempts in by_rule if item.attempt in attempts), None)
        if item.pinned:
            reasons[item.attempt] = "pinned"
        elif item.condition is Condition.VALID:
            reasons[item.attempt] = kept_by or "not older than the newest"
        elif item.condition is Condition.UNKNOWN:
            reasons[item.attempt] = "written by a later version"
        else:
            reasons[item.attempt] = f"{item.condition.value}, and not older than a valid checkpoint: it may be at work"
    return reasons


def _kept(valid: Sequence[Found], keep: Keep) -> set[AttemptName]:
    """Valid attempts, given newest first, that a rule keeps."""
    kept = {item.attempt for item in valid[: keep.last]}
    if keep.every_epochs is not None:
        ends: dict[int, AttemptName] = {}
        for item in valid:
            status = item.status
            # An epoch that was trained twice has two ends; the newer stays.
            if status is not None and status.position == 0 and status.next() and not status.next() % keep.every_epochs:
                ends.setdefault(status.epoch_no, item.attempt)
        kept |= set(ends.values())
    if keep.best:
        ranked = [(value, item.attempt) for item in valid if (value := metric_of(item.status, keep)) is not None]
        kept |= {attempt for _, attempt in sorted(ranked, reverse=True)[: keep.best]}
    return kept


def metric_of(status: TrainStatus | None, keep: Keep) -> float | None:
    """The metric of a checkpoint, the higher the better; None if it has none that can be compared."""
    value = None if status is None else status.user.get(keep.metric)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value if keep.mode == "max" else -value


def _why(keep: Keep) -> str:
    rules = [f"the last {keep.last}"]
    if keep.every_epochs is not None:
        rules.append(f"every {keep.every_epochs} epochs")
    if keep.best:
        rules.append(f"the best {keep.best} by {keep.metric}")
    return f"not among {', '.join(rules)}"


def _order(item: Found) -> AttemptName:
    return item.attempt


def _step(attempt: AttemptName) -> tuple[int, int]:
    """The order without number and token: an unfinished attempt at our own step may be a second saver at work."""
    return attempt.driver_epoch, attempt.global_step
