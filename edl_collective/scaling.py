"""Batch policies and learning rates that survive a resize. [pure]

A batch policy says how large the global batch is at a world size and by which factor it scales the learning rate.
Under both policies each rank computes the SUM of its samples' losses divided by the global count of the step, and the
gradients are reduced with op=Sum: the result is the mean gradient over the global batch, however it was cut.

A learning-rate schedule is a function of the progress in epochs (a real number: samples seen / dataset size), never of
steps: a resize changes how many steps an epoch has and thus would move every boundary counted in steps.

Nothing here keeps state: a BatchScale is a value that the training state carries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class BatchScale:
    """The factor on the learning rate: from `start` at `since_samples`, linearly to `target` in `warmup_samples`."""

    start: float = 1.0
    target: float = 1.0
    since_samples: int = 0
    warmup_samples: int = 0

    def at(self, samples_seen: int) -> float:
        """The factor after `samples_seen` samples of the whole training; monotone between start and target."""
        passed = samples_seen - self.since_samples
        if passed >= self.warmup_samples:
            return self.target
        return self.start + (self.target - self.start) * max(0, passed) / self.warmup_samples


class BatchPolicy(Protocol):
    """How the global batch and the learning rate follow the world size."""

    @property
    def min_local_batch(self) -> int:
        """Fewest samples of a chunk that is not empty."""

    def global_batch(self, world_size: int) -> int:
        """Samples of a full global step at `world_size` ranks."""

    def rescale(self, current: BatchScale | None, samples_seen: int, world_size: int) -> BatchScale:
        """The scale from now on, given the one so far (None at the very start); harmless when done twice."""


@dataclass(frozen=True, slots=True)
class TotalBatch:
    """Policy `total`: the global batch is constant, so neither the gradients nor the learning rate change.

    total: samples of a global step. min_local_batch: fewest samples of a chunk (2 for batch norm).
    Raises ValueError unless 1 <= min_local_batch <= total.
    """

    total: int
    min_local_batch: int = 1

    def __post_init__(self) -> None:
        _check("min_local_batch", self.min_local_batch, self.min_local_batch >= 1, "at least 1")
        _check(
            "total", self.total, self.total >= self.min_local_batch, f"at least min_local_batch {self.min_local_batch}"
        )

    def global_batch(self, world_size: int) -> int:
        """`total`, at every world size."""
        _check("world_size", world_size, world_size >= 1, "at least 1")
        return self.total

    def rescale(self, current: BatchScale | None, samples_seen: int, world_size: int) -> BatchScale:
        """Always the factor 1."""
        del current, samples_seen, world_size
        return BatchScale()


@dataclass(frozen=True, slots=True)
class PerWorkerBatch:
    """Policy `per_worker`: the global batch grows with the world, and the learning rate linearly with it.

    The learning rate of the schedule is meant for `reference_world_size` ranks. After a growth the factor climbs
    linearly to its new value while `warmup_samples` are consumed (Goyal et al., arXiv 1706.02677, 2.2); after a
    shrink it falls at once, because a smaller batch does not bear the old rate. So the factor never exceeds
    world_size / reference_world_size.

    Raises ValueError unless 1 <= min_local_batch <= per_worker, reference_world_size >= 1 and warmup_samples >= 0.
    """

    per_worker: int
    reference_world_size: int = 1
    warmup_samples: int = 0
    min_local_batch: int = 1

    def __post_init__(self) -> None:
        _check("min_local_batch", self.min_local_batch, self.min_local_batch >= 1, "at least 1")
        bound = f"at least min_local_batch {self.min_local_batch}"
        _check("per_worker", self.per_worker, self.per_worker >= self.min_local_batch, bound)
        _check("reference_world_size", self.reference_world_size, self.reference_world_size >= 1, "at least 1")
        _check("warmup_samples", self.warmup_samples, self.warmup_samples >= 0, "at least 0")

    def global_batch(self, world_size: int) -> int:
        """`per_worker` samples for each rank."""
        _check("world_size", world_size, world_size >= 1, "at least 1")
        return self.per_worker * world_size

    def rescale(self, current: BatchScale | None, samples_seen: int, world_size: int) -> BatchScale:
        """Head for world_size / reference_world_size from the factor in effect; at the very start take it at once."""
        target = self.global_batch(world_size) / (self.per_worker * self.reference_world_size)
        if current is not None and current.target == target:
            return current
        start = target if current is None else current.at(samples_seen)
        warmup = self.warmup_samples if start < target else 0
        return BatchScale(start, target, samples_seen, warmup)


class Schedule(Protocol):
    """A learning rate over the progress of the training, before the batch policy scales it."""

    def at_epoch(self, epoch: float) -> float:
        """The learning rate after `epoch` epochs, a real number >= 0 (2.5: half of the third epoch is done)."""


@dataclass(frozen=True, slots=True)
class PiecewiseLR:
    """Constant between boundaries: `values[i]` until `boundaries[i]` epochs are done, the last value for ever.

    boundaries: epochs, rising, fractions allowed; values: one more than boundaries, each >= 0. Else ValueError.
    """

    values: Sequence[float]
    boundaries: Sequence[float]

    def __post_init__(self) -> None:
        count = len(self.values)
        _check("values", count, count == len(self.boundaries) + 1, "one longer than boundaries")
        for value in self.values:
            _check_rate("values", value)
        edges = [0.0, *self.boundaries]
        rising = all(low < high < math.inf for low, high in zip(edges, self.boundaries, strict=False))
        _check("boundaries", tuple(self.boundaries), rising, "rising epochs greater than 0")

    def at_epoch(self, epoch: float) -> float:
        """See Schedule. At a boundary the next value applies."""
        return self.values[sum(boundary <= epoch for boundary in self.boundaries)]


@dataclass(frozen=True, slots=True)
class CosineLR:
    """Half a cosine from `base_lr` down to `final_lr` in `epochs` epochs, then `final_lr`."""

    base_lr: float
    epochs: float
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        _check_rate("base_lr", self.base_lr)
        _check_rate("final_lr", self.final_lr)
        _check_epochs("epochs", self.epochs)

    def at_epoch(self, epoch: float) -> float:
        """See Schedule."""
        return _cosine(self.base_lr, self.final_lr, epoch / self.epochs)


@dataclass(frozen=True, slots=True)
class OneCycleLR:
    """Up and down again in one cycle: from max_lr / initial_divisor to max_lr, then to max_lr / final_divisor.

    Both halves are half cosines; the climb takes `climb_fraction` of the `epochs` (Smith and Topin, arXiv 1708.07120).
    """

    max_lr: float
    epochs: float
    climb_fraction: float = 0.3
    initial_divisor: float = 25.0
    final_divisor: float = 1e4

    def __post_init__(self) -> None:
        _check_rate("max_lr", self.max_lr)
        _check_epochs("epochs", self.epochs)
        _check("climb_fraction", self.climb_fraction, 0 < self.climb_fraction < 1, "between 0 and 1")
        _check("initial_divisor", self.initial_divisor, 1 <= self.initial_divisor < math.inf, "at least 1")
        _check("final_divisor", self.final_divisor, 1 <= self.final_divisor < math.inf, "at least 1")

    def at_epoch(self, epoch: float) -> float:
        """See Schedule."""
        top = self.epochs * self.climb_fraction
        if epoch < top:
            return _cosine(self.max_lr / self.initial_divisor, self.max_lr, epoch / top)
        return _cosine(self.max_lr, self.max_lr / self.final_divisor, (epoch - top) / (self.epochs - top))


@dataclass(frozen=True, slots=True)
class LinearWarmup:
    """Another schedule, multiplied in its first `epochs` by a factor that climbs from `start_factor` to 1."""

    schedule: Schedule
    epochs: float
    start_factor: float = 0.0

    def __post_init__(self) -> None:
        _check_epochs("epochs", self.epochs)
        _check("start_factor", self.start_factor, 0 <= self.start_factor <= 1, "0 to 1")

    def at_epoch(self, epoch: float) -> float:
        """See Schedule."""
        passed = min(1.0, epoch / self.epochs)
        return self.schedule.at_epoch(epoch) * (self.start_factor + (1.0 - self.start_factor) * passed)


def lr_at(schedule: Schedule, samples_seen: int, dataset_size: int, scale: float = 1.0) -> float:
    """The learning rate after `samples_seen` samples of the whole training.

    Arguments: samples_seen, epochs completed times dataset_size plus the position; dataset_size, samples of an epoch;
    scale, the factor of the batch policy (BatchScale.at).
    Raises ValueError when samples_seen is negative or dataset_size is not positive.
    """
    _check("samples_seen", samples_seen, samples_seen >= 0, "at least 0")
    _check("dataset_size", dataset_size, dataset_size >= 1, "at least 1")
    return schedule.at_epoch(samples_seen / dataset_size) * scale


class Seen(Protocol):
    """How far training is, as a sampler knows it; see lr_at()."""

    @property
    def samples_seen(self) -> int: ...

    @property
    def dataset_size(self) -> int: ...

    @property
    def lr_scale(self) -> float: ...


class Rates:
    """The learning rates of an optimizer's `groups`, by `schedule` or, without one, by each group's own rate.

    With a schedule, a group's "lr_scale" (default 1) multiplies its rate.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], schedule: Schedule | None) -> None:
        self._schedule = schedule
        self._own = [float(group["lr"]) for group in groups]

    def set(self, groups: Sequence[dict[str, Any]], seen: Seen) -> None:
        """Give each group its rate."""
        for group, own in zip(groups, self._own, strict=True):
            if self._schedule is None:
                group["lr"] = own * seen.lr_scale
            else:
                rate = lr_at(self._schedule, seen.samples_seen, seen.dataset_size, seen.lr_scale)
                group["lr"] = rate * group.get("lr_scale", 1.0)


def _cosine(start: float, end: float, fraction: float) -> float:
    if fraction >= 1.0:
        return end
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * fraction))


def _check_rate(name: str, value: float) -> None:
    _check(name, value, 0 <= value < math.inf, "a finite learning rate of at least 0")


def _check_epochs(name: str, value: float) -> None:
    _check(name, value, 0 < value < math.inf, "a finite number of epochs greater than 0")


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, not {value}")
