"""What a resize is worth: samples that more workers are expected to add, less what the pause costs. [pure]

The rates of the sizes that a job has had are measured; a size that it has not had is predicted from them, by the
steady loss of efficiency that fits them best: rate(n) = n * a / (1 + b * (n - 1)). With one measured size the loss is
unknown and taken for none, so that a job tries a larger world once and is then judged by what came of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edl_collective.coord.records import Speed

#: what a job has left is not known: whatever pays off within this time is done
HORIZON_S = 600.0
#: sizes that are remembered: the newest
MAX_SIZES = 16
#: a rate is written again when it has changed by more than this part, so that noise writes nothing
_NEWS = 0.1


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known of a job's speed. `pause_s`: of its last resize; `left`: samples to train, None if unknown."""

    measured: tuple[Speed, ...] = ()
    pause_s: float | None = None
    left: int | None = None

    def pays(self, before: int, after: int) -> bool:
        """Whether going from `before` to `after` workers is expected to train more than staying does.

        True while nothing speaks against it: no rate or no pause has been measured.
        """
        now, then = self.rate(before), self.rate(after)
        if now is None or then is None or self.pause_s is None:
            return True
        horizon_s = HORIZON_S if self.left is None else min(HORIZON_S, self.left / now)
        return then * (horizon_s - self.pause_s) > now * horizon_s

    def rate(self, np: int) -> float | None:
        """Samples a second of `np` workers, measured or else predicted; None before anything was measured."""
        if not self.measured:
            return None
        exact = next((m.rate for m in self.measured if m.np == np), None)
        return exact if exact is not None else _fitted(self.measured, np)


def remember(measured: Sequence[Speed], np: int, rate: float) -> tuple[Speed, ...]:
    """`measured` with what a world of `np` does now; the same values if that is no news."""
    old = next((m.rate for m in measured if m.np == np), None)
    if rate <= 0 or (old is not None and abs(rate - old) <= _NEWS * old):
        return tuple(measured)
    others = [m for m in measured if m.np != np]
    return (*others, Speed(np, rate))[-MAX_SIZES:]


def _fitted(measured: Sequence[Speed], np: int) -> float:
    """By least squares on n / rate(n) = (1 - c) * t + c * t * n, which is the law above with t = 1 / a and c = b."""
    xs = [m.np for m in measured]
    ys = [m.np / m.rate for m in measured]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0
    slope = max(0.0, slope)  # workers that get faster by being more are noise
    cost = mean_y + slope * (np - mean_x)
    least = min(ys) / 2
    return np / max(cost, least)
