"""A teacher as one student sees it: how fast it answers, how much it may have at once, whether it is asked. [pure]

Latencies are those of whole requests of this student, in seconds. The times of a teacher that nobody has asked yet are
unknown (None), never guessed; `Flight` decides what to do then. Nothing here chooses between teachers.
"""

from collections import deque
from collections.abc import Callable
from enum import StrEnum

from distill.source import Teacher

#: answers that the quantiles look back on, answers after which they are computed anew, answers they need at least
_WINDOW, _REFRESH, _ENOUGH = 200, 10, 10
#: weight of the newest answer in the moving averages
_NEWEST = 0.2
#: how fast a fastest latency is forgotten, per answer
_FORGET = 1.002


class Standing(StrEnum):
    """Whether a teacher gets requests."""

    #: new, or back: one at a time until it answers
    TRIAL = "trial"
    UP = "up"
    #: a request of its was hedged: nothing new until it answers
    SLOW = "slow"
    #: nothing until a probe succeeds, and no probe before `until_s`
    DOWN = "down"
    PROBED = "probed"


class Latencies:
    """Quantiles of the last answers; None until there are enough of them."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_WINDOW)
        self._new = 0
        self.p50_s: float | None = None
        self.p95_s: float | None = None
        self.p99_s: float | None = None

    def add(self, latency_s: float) -> None:
        self._last.append(latency_s)
        self._new += 1
        if len(self._last) >= _ENOUGH and (self.p50_s is None or self._new >= _REFRESH):
            self._new = 0
            ordered = sorted(self._last)
            self.p50_s, self.p95_s, self.p99_s = (ordered[int(len(ordered) * q)] for q in (0.5, 0.95, 0.99))


class Asked:
    """One teacher: its standing, its depth (requests that it may have at once) and its speed.

    `leaving` is apart from the standing: a teacher that drains or was removed finishes what it has.
    """

    def __init__(self, teacher: Teacher, first_depth: int, max_depth: int) -> None:
        self.teacher = teacher
        self.standing = Standing.TRIAL
        self.leaving = False
        #: attempts that it has not answered
        self.attempts: set[int] = set()
        self.latencies = Latencies()
        self.answers = 0
        self.faults = 0
        #: why it is down, for people
        self.reason = ""
        #: time of the next probe (DOWN) or the end of the one under way (PROBED)
        self.until_s = 0.0
        self._depth = float(first_depth)
        self._max_depth = max_depth
        self._backoff_s = 0.0
        self._fastest_s: float | None = None
        self._latency_s: float | None = None
        #: seconds from one answer to the next while it has work: 1 / its rate
        self._interval_s: float | None = None
        self._last_answer_s = 0.0

    @property
    def depth(self) -> int:
        """Requests that it may have at once now; 0 while it gets none."""
        if self.leaving or self.standing not in (Standing.TRIAL, Standing.UP):
            return 0
        return 1 if self.standing is Standing.TRIAL else int(self._depth)

    @property
    def usable(self) -> bool:
        """Whether an answer may be expected of it."""
        return not self.leaving and self.standing in (Standing.TRIAL, Standing.UP, Standing.SLOW)

    def completion_s(self, samples: int) -> float:
        """Expected seconds until it would have answered one more request of `samples` samples."""
        interval_s = self._interval_s
        if interval_s is None:
            interval_s = samples / self.teacher.rate if self.teacher.rate else 0.001
        return (self._fastest_s or interval_s) + interval_s * len(self.attempts)

    def answered(self, sent_s: float, now_s: float) -> None:
        """It has answered, well, what it was sent at `sent_s`."""
        latency_s = max(now_s - sent_s, 1e-6)
        interval_s = max(now_s - max(sent_s, self._last_answer_s), 1e-6)
        self._last_answer_s = now_s
        self.answers += 1
        self._backoff_s = 0.0
        self.latencies.add(latency_s)
        self._latency_s = _average(self._latency_s, latency_s)
        self._interval_s = _average(self._interval_s, interval_s)
        self._fastest_s = min(latency_s, (self._fastest_s or latency_s) * _FORGET)
        if self.standing is not Standing.UP:
            self.standing, self.reason = Standing.UP, ""
        self._adapt()

    def _adapt(self) -> None:
        """Keep one to two requests queued at the teacher beyond rate x latency, which is what it works on.

        The rate is depth / latency, so what it works on is depth x fastest / latency (the estimate of TCP Vegas).
        """
        assert self._latency_s is not None
        assert self._fastest_s is not None
        queued = self._depth * (1 - self._fastest_s / self._latency_s)
        if queued < 1 and len(self.attempts) + 1 >= int(self._depth):
            self._depth = min(self._max_depth, self._depth + 1 / self._depth)
        elif queued > 2:
            self._depth = max(2.0, self._depth - 1 / self._depth)

    def fail(self, reason: str, now_s: float, backoff_s: tuple[float, float], jitter: Callable[[], float]) -> None:
        """Take it out; the pause until the next probe doubles from fault to fault, between the two of `backoff_s`."""
        least, most = backoff_s
        self.faults += 1
        self.reason = reason
        self.standing = Standing.DOWN
        self.until_s = now_s + self._backoff_s * jitter()
        self._backoff_s = min(most, max(least, self._backoff_s * 2))

    def probe_until(self, end_s: float) -> None:
        self.standing, self.until_s = Standing.PROBED, end_s

    def came_back(self) -> None:
        """A probe succeeded: it gets one request, and more when it has answered that."""
        self.standing = Standing.TRIAL


def _average(before: float | None, newest: float) -> float:
    return newest if before is None else before + _NEWEST * (newest - before)
