"""Python's collector of cyclic garbage in a JobServer: it works between decisions, and not in the middle of one.

A snapshot of a large cluster is a hundred thousand objects that live long. To look through all of them takes as long
as to decide, and by default it happens while new objects are made, which is when something is decided. Almost nothing
here is cyclic: reference counts free the rest at once.
"""

import gc

from edl_collective.coord.clock import Clock

#: young objects that make the collector look at them; the default is 700
YOUNG = 50_000
#: so many looks at the young before it looks at older ones by itself; it should never come to that
OLDER = 1000
#: between two looks at everything
EVERY_S = 60.0


def begin_collecting() -> None:
    """To be called when everything is imported: that stays, and is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OLDER, OLDER)


class Collecting:
    """Looks at everything when there is time, once in EVERY_S."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._looked_s = clock.monotonic_s()

    def between_decisions(self) -> None:
        """To be called when nothing waits to be decided."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s >= EVERY_S:
            self._looked_s = now_s
            gc.collect()
