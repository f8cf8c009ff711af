"""Which attempts may be collected after a save. [pure]

Invariant: the newest valid checkpoint is never collected, nor any attempt that is not older than the one just
committed: it may be a save in progress, or the work of a newer driver that this saver knows nothing about.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from checkpoints.layout import AttemptName


class Condition(Enum):
    """What a look at an attempt found: sizes are compared, contents are not read."""

    VALID = "valid"
    DAMAGED = "damaged"  # a manifest is there, and it or a shard does not fit
    UNFINISHED = "unfinished"  # no manifest: a save in progress, or one that died
    UNKNOWN = "unknown"  # a manifest of a later version, which is not ours to judge


@dataclass(frozen=True)
class Collect:
    """An attempt that may go, and why."""

    attempt: AttemptName
    reason: str


def collectable(found: Iterable[tuple[AttemptName, Condition]], ours: AttemptName, keep: int) -> list[Collect]:
    """Decide what to collect, oldest first.

    Args:
        found: every attempt in the folder with its condition.
        ours: the attempt that was committed just now.
        keep: valid checkpoints to keep, at least 1.

    Raises:
        ValueError: if keep is less than 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1; it is {keep}")
    known = dict(found)
    valid = sorted((a for a, condition in known.items() if condition is Condition.VALID), reverse=True)
    if ours not in valid:
        return []  # what we wrote cannot be seen: no ground to delete anything on
    chosen = [Collect(a, f"{keep} newer ones are kept") for a in valid[keep:]]
    chosen += [
        Collect(a, f"{condition.value}, and older than a valid checkpoint")
        for a, condition in known.items()
        if condition in (Condition.DAMAGED, Condition.UNFINISHED) and _step(a) < _step(ours)
    ]
    return sorted((item for item in chosen if item.attempt < ours), key=lambda item: item.attempt)


def _step(attempt: AttemptName) -> tuple[int, int]:
    """The order without number and token: an unfinished attempt at our own step may be a second saver at work."""
    return attempt.driver_epoch, attempt.global_step
