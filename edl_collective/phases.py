"""Where the pause of a resize goes, phase by phase. [pure]

A pause is the time from the last step of one world to the first of the next.
"""

from collections.abc import Callable, Mapping

#: in this order; each ends where the next begins.
#: shutdown: leaving Horovod's world; gate: waiting for the next one; init: connecting it; sync: making the state equal;
#: batch: the loader's first batch, with the start of its workers; step: forward, backward, reduction and update.
PHASES = ("shutdown", "gate", "init", "sync", "batch", "step")


class Phases:
    """Ends of the phases of one resize, by `clock` (monotonic, in seconds)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ends_s: dict[str, float] = {}

    def end(self, phase: str) -> None:
        """`phase` ends now; it and those before it are one pause."""
        assert phase in PHASES, phase
        self._ends_s[phase] = self._clock()

    def spans(self, since_s: float | None) -> Mapping[str, float]:
        """Seconds of each phase since `since_s`, the end of the last step; of those only that ended after it.

        None, for a worker that has completed no step yet, gives nothing.
        """
        if since_s is None:
            return {}
        spans, before_s = {}, since_s
        for phase in PHASES:
            end_s = self._ends_s.get(phase)
            if end_s is not None and end_s >= before_s:
                spans[phase] = end_s - before_s
                before_s = end_s
        return spans
