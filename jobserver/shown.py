"""Answers about the whole cluster, which take long to make where it is large.

Invariant: what a small cluster is told is always new; a large one is told again what it was told a moment ago, so that
its records, which change all the time, leave time for other requests. Whoever changed something is told at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from edl_collective.coord.clock import Clock
from jobserver.api_models import Json
from jobserver.snapshot import Snapshot

#: an answer that took longer than QUICK_S to make is given again for AGAIN times as long
QUICK_S = 0.005
AGAIN = 5.0


@dataclass(frozen=True, slots=True)
class _Answer:
    snapshot: Snapshot
    body: bytes
    #: monotonic clock
    good_until_s: float


class Shown:
    """For several threads: at worst two make the same answer."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._answers: dict[str, _Answer] = {}

    def forget(self) -> None:
        """Something was changed: the next answers are new."""
        self._answers = {}

    def answer(self, what: str, load: Callable[[], Snapshot], show: Callable[[Snapshot], Json]) -> bytes:
        """JSON of `show` of the newest snapshot, under the name `what`."""
        answers = self._answers
        began_s = self._clock.monotonic_s()
        old = answers.get(what)
        if old is not None and began_s < old.good_until_s:
            return old.body
        snapshot = load()
        same = old is not None and old.snapshot is snapshot
        body = old.body if old is not None and same else msgspec.json.encode(show(snapshot))
        now_s = self._clock.monotonic_s()
        took_s = now_s - began_s
        answers[what] = _Answer(snapshot, body, now_s + (AGAIN * took_s if took_s > QUICK_S else 0.0))
        return body
