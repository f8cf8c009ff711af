"""When to save: by epoch, step, time, or because it was asked for. [pure]

Invariants:
- The timer counts from the last save and from nothing else: the end of an epoch does not set it back, so a job whose
  epochs are shorter than the interval is saved all the same.
- Epochs and steps count from the beginning of the run, not of the process: after a restart the same ones are due.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from checkpoints.train_status import TrainStatus


@dataclass(frozen=True)
class Every:
    """Save when any of these is due.

    Attributes:
        epochs: at the end of each so many epochs; None leaves them out, and so below.
        steps: each so many optimizer steps.
        seconds: so many seconds after the last save began.

    Raises:
        ValueError: if none is given, or one is out of range.
    """

    epochs: int | None = None
    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None and self.seconds is None:
            raise ValueError("Every() needs epochs=, steps= or seconds=; to save at each call leave `every` out")
        for name, value in (("epochs", self.epochs), ("steps", self.steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; it is {value}")
        if self.seconds is not None and not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise ValueError(f"seconds must be positive; it is {self.seconds}")


@dataclass(frozen=True)
class Mark:
    """Where the training stood when it was last saved, or when it began, and when that was by the caller's clock."""

    epoch_no: int
    global_step: int
    time_s: float


def mark(status: TrainStatus, time_s: float) -> Mark:
    """The mark of a status."""
    return Mark(status.epoch_no, status.global_step, time_s)


def due(every: Every | None, last: Mark, now: Mark, asked: str | None = None) -> str | None:
    """Why a save is due now, in words; None if it is not.

    Args:
        every: the rules; None saves at each call.
        last: at the last save, or at the beginning.
        now: at this call.
        asked: why somebody asked for a save at the next occasion, None if nobody did.
    """
    if asked is not None:
        return asked
    if every is None:
        return "each call saves"
    if every.epochs is not None and (now.epoch_no + 1) // every.epochs > (last.epoch_no + 1) // every.epochs:
        return f"epoch {now.epoch_no} is complete"
    if every.steps is not None and now.global_step // every.steps > last.global_step // every.steps:
        return f"{every.steps} steps"
    if every.seconds is not None and now.time_s - last.time_s >= every.seconds:
        return f"{every.seconds:g} s since the last save"
    return None
