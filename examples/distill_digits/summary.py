"""From the students' outcomes to a table: means with 95 % intervals, and differences of students of one seed.

An interval is Student's t of the values of the seeds. Differences are taken seed by seed, between students with the
same images, order and first weights, so that what the seeds have in common cancels out.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy.stats import t

#: pairs (better?, than?) that the README speaks of
COMPARED = (("in-process", "plain"), ("service", "plain"), ("service", "in-process"))


class Mean(NamedTuple):
    """A mean and half of its 95 % interval; None for a single value, which has none."""

    mean: float
    half: float | None

    def as_percent(self, sign: str = "") -> str:
        """As "87.3 ± 1.2"."""
        text = f"{self.mean * 100:{sign}.2f}"
        return text if self.half is None else f"{text} ± {self.half * 100:.2f}"


def mean_of(values: Sequence[float]) -> Mean:
    """Of at least one value."""
    if len(values) < 2:
        return Mean(values[0], None)
    error = statistics.stdev(values) / len(values) ** 0.5
    return Mean(statistics.fmean(values), float(t.ppf(0.975, len(values) - 1)) * error)


def differences(by_mode: Mapping[str, Sequence[float]]) -> dict[str, Mean]:
    """ "service - plain" and so on, from the values of each mode in the order of the seeds."""
    return {
        f"{first} - {second}": mean_of([a - b for a, b in zip(by_mode[first], by_mode[second], strict=True)])
        for first, second in COMPARED
        if first in by_mode and second in by_mode
    }
