"""How long this process waited for teachers at each step of the epoch, where its loader reads through some.

Known from the loader alone, which counts (a DistillReader does): nothing here imports distill or asks for it.
"""

from collections.abc import Callable

#: seconds waited and batches read, since the loader began
_Counts = tuple[float, int]


class TeacherWaits:
    """Counts from the begin of an epoch. Invariant: what was read before is not counted."""

    def __init__(self) -> None:
        self._read: Callable[[], _Counts] | None = None
        self._before: _Counts = (0.0, 0)

    def follow(self, loader: object) -> None:
        """Count what `loader` waits, if it says so: its `stats` have `waited_s` and `batches`."""
        if self._read is None and hasattr(getattr(loader, "stats", None), "waited_s"):
            self._read = lambda: _counts(loader)
            self._before = self._read()

    def total_s(self) -> float:
        """Seconds waited since the loader began; 0 where there are no teachers."""
        return self._read()[0] if self._read is not None else 0.0

    def begin_epoch(self) -> None:
        self._before = self._read() if self._read is not None else (0.0, 0)

    def counts(self) -> _Counts:
        """Seconds and steps of this epoch; zeros where there are no teachers."""
        waited_s, batches = self._read() if self._read is not None else (0.0, 0)
        return waited_s - self._before[0], batches - self._before[1]

    def per_step_s(self) -> float | None:
        """Seconds per step of this epoch; None where there are no teachers, and before the first step."""
        return per_step(*self.counts())


def per_step(waited_s: float, steps: float) -> float | None:
    """Their ratio, to a microsecond; None without steps."""
    return round(waited_s / steps, 6) if steps > 0 else None


def _counts(loader: object) -> _Counts:
    stats = loader.stats  # type: ignore[attr-defined]
    return float(stats.waited_s), int(stats.batches)
