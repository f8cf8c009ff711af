"""The requests of one student that teachers work on: who is asked, when, and when again. [pure]

Events go in (posted, answered, failed, teachers changed, probed, a tick of the clock) and actions come out (send,
deliver, drop an attempt, probe, close, give up); the IO process carries them out. The caller passes the time in.

Invariant: each posted request leads to exactly one Deliver or GiveUp unless it is forgotten, whatever the events; an
attempt that is answered after another one of the same request has won leads to nothing.
"""

import heapq
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from distill.asked import Asked, Latencies, Standing
from distill.limits import Limits
from distill.source import Teacher


class Fault(StrEnum):
    """What became of an attempt instead of an answer."""

    #: no connection could be made
    UNREACHABLE = "unreachable"
    #: the connection broke off
    BROKEN = "broken"
    #: nothing came until the deadline
    TIMEOUT = "timeout"
    #: the teacher is overloaded or drains (429, 503): another one may do
    BUSY = "busy"
    #: the teacher answered with an error (4xx, 500)
    REFUSED = "refused"
    #: the answer is not one: NaN, another shape, another model
    WRONG = "wrong"


class Send(NamedTuple):
    """Send the request to the teacher; `attempt` names the try from here on."""

    attempt: int
    request: int
    teacher: Teacher


class Deliver(NamedTuple):
    """The answer of this attempt is the one."""

    attempt: int
    request: int


class Drop(NamedTuple):
    """Stop the attempt: nothing that still comes is wanted."""

    attempt: int


class Probe(NamedTuple):
    """Ask the teacher whether it lives, and call probed()."""

    teacher: Teacher


class Close(NamedTuple):
    """The teacher is gone and has answered all that it had: its connections are no more needed."""

    teacher: Teacher


class GiveUp(NamedTuple):
    """Several teachers refused the request: the student has to know."""

    request: int
    reason: str


Action = Send | Deliver | Drop | Probe | Close | GiveUp
_Key = tuple[str, str, str | None]


@dataclass(slots=True)
class _Attempt:
    #: None once nobody waits for it: it lost against another attempt, or the request was forgotten
    request: int | None
    asked: Asked
    sent_s: float
    hedged: bool = False


@dataclass(slots=True)
class _Request:
    samples: int
    attempts: set[int] = field(default_factory=set)
    refusals: int = 0
    avoid: set[_Key] = field(default_factory=set)


class Flight:
    """The state machine. Every event returns what is to be done, in order; `tick` belongs to each `wake_at`."""

    def __init__(self, limits: Limits | None = None, jitter: Callable[[], float] = lambda: 1.0) -> None:
        self._limits = limits or Limits()
        self._jitter = jitter
        self._asked: dict[_Key, Asked] = {}
        self._live: dict[int, _Request] = {}
        self._attempts: dict[int, _Attempt] = {}
        #: requests that nobody works on, lowest first: the student wants them in that order
        self._pending: list[int] = []
        #: the same, not before a time
        self._paused: list[tuple[float, int]] = []
        self._latencies = Latencies()
        self._next_attempt = 0
        self._hedges = self._limits.hedge_burst
        self._retries = self._limits.retry_burst
        self.hedged = 0
        self.retried = 0

    # ---- what people and the reader ask ---------------------------------------------------------------------------

    @property
    def asked(self) -> Collection[Asked]:
        """All teachers, those that leave included."""
        return self._asked.values()

    @property
    def live(self) -> Collection[int]:
        """Requests that are neither delivered nor given up nor forgotten."""
        return self._live.keys()

    @property
    def usable(self) -> bool:
        """Whether any teacher may be expected to answer."""
        return any(asked.usable for asked in self._asked.values())

    def why_not(self) -> str:
        """A sentence for people: what is wrong with each teacher that is not usable."""
        bad = [a for a in self._asked.values() if not a.usable]
        return "; ".join(f"{a.teacher.teacher} {'leaves' if a.leaving else a.reason}" for a in bad)

    def wake_at(self) -> float | None:
        """When tick() has something to do, if nothing else happens before; may be too early."""
        times = [self._look_again_at(attempt) for attempt in self._attempts.values()]
        times += [a.until_s for a in self._asked.values() if a.standing in (Standing.DOWN, Standing.PROBED)]
        if self._paused:
            times.append(self._paused[0][0])
        return min(times, default=None)

    # ---- events ---------------------------------------------------------------------------------------------------

    def teachers_changed(self, teachers: Iterable[Teacher], now_s: float) -> list[Action]:
        """Who may be asked from now on; the others finish what they have."""
        wanted = {_key(teacher): teacher for teacher in teachers}
        for key, asked in self._asked.items():
            asked.leaving = key not in wanted
        for key, teacher in wanted.items():
            if key in self._asked:
                self._asked[key].teacher = teacher
            else:
                self._asked[key] = Asked(teacher, self._limits.first_depth, self._limits.max_depth)
        return self._close_idle() + self._dispatch(now_s)

    def posted(self, request: int, samples: int, now_s: float) -> list[Action]:
        """A request of `samples` samples is to be answered. One that is live already is the same one."""
        if request in self._live:
            return []
        self._live[request] = _Request(samples)
        self._hedges = min(self._limits.hedge_burst, self._hedges + self._limits.hedge_share)
        self._retries = min(self._limits.retry_burst, self._retries + self._limits.retry_share)
        heapq.heappush(self._pending, request)
        return self._dispatch(now_s)

    def answered(self, attempt: int, now_s: float, *, closing: bool = False) -> list[Action]:
        """A good answer came; `closing`: with the end of a connection that the teacher used to keep."""
        tried = self._end(attempt)
        before = tried.asked.standing
        tried.asked.answered(tried.sent_s, now_s)
        self._latencies.add(now_s - tried.sent_s)
        actions = self._ask_whether_it_leaves(tried.asked, before, now_s) if closing else []
        if tried.request is not None:
            actions.append(Deliver(attempt, tried.request))
            self._orphan(tried.request)
        return actions + self._close_idle() + self._dispatch(now_s)

    def failed(self, attempt: int, fault: Fault, reason: str, now_s: float) -> list[Action]:
        """The attempt ended without a good answer; its connection is closed, or was answered to the end."""
        tried = self._end(attempt)
        actions = self._take_out(tried.asked, fault, reason, now_s)
        if tried.request is not None:
            actions += self._again(tried, fault, reason, now_s)
        return actions + self._close_idle() + self._dispatch(now_s)

    def probed(self, teacher: Teacher, reason: str | None, now_s: float) -> list[Action]:
        """A probe succeeded (reason None) or not."""
        asked = self._asked.get(_key(teacher))
        if asked is None or asked.standing is not Standing.PROBED:
            return []
        if reason is None:
            asked.came_back()
        else:
            self._fail(asked, reason, now_s)
        return self._dispatch(now_s)

    def forget(self, requests: Iterable[int], now_s: float) -> list[Action]:
        """Nobody wants these any more; what teachers still answer is dropped."""
        for request in list(requests):
            if request in self._live:
                self._orphan(request)
        self._pending = [request for request in self._pending if request in self._live]
        heapq.heapify(self._pending)
        return self._dispatch(now_s)

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed: end what is overdue, hedge what is late, probe who may be back."""
        actions = self._time_out(now_s)
        while self._paused and self._paused[0][0] <= now_s:
            heapq.heappush(self._pending, heapq.heappop(self._paused)[1])
        for asked in self._asked.values():
            if asked.standing is Standing.PROBED and now_s >= asked.until_s:
                self._fail(asked, f"does not answer a probe within {self._limits.probe_s:g} s", now_s)
            if asked.standing is Standing.DOWN and now_s >= asked.until_s and not asked.leaving:
                asked.probe_until(now_s + self._limits.probe_s)
                actions.append(Probe(asked.teacher))
        actions += self._close_idle() + self._dispatch(now_s)
        return actions + self._hedge(now_s)

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _dispatch(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        while self._pending:
            request = self._live.get(self._pending[0])
            if request is None or request.attempts:
                heapq.heappop(self._pending)
                continue
            asked = self._choose(request, request.avoid)
            if asked is None and request.avoid:
                asked = self._choose(request, ())
            if asked is None:
                break
            actions.append(self._send(heapq.heappop(self._pending), asked, now_s))
        return actions

    def _choose(self, request: _Request, avoid: Collection[_Key]) -> Asked | None:
        """The teacher that is expected to be done first, of those that may be given one more."""
        free = [a for key, a in self._asked.items() if len(a.attempts) < a.depth and key not in avoid]
        return min(free, key=lambda a: a.completion_s(request.samples), default=None)

    def _send(self, request: int, asked: Asked, now_s: float) -> Send:
        attempt = self._next_attempt
        self._next_attempt += 1
        self._attempts[attempt] = _Attempt(request, asked, now_s)
        self._live[request].attempts.add(attempt)
        asked.attempts.add(attempt)
        return Send(attempt, request, asked.teacher)

    def _end(self, attempt: int) -> _Attempt:
        tried = self._attempts.pop(attempt)
        tried.asked.attempts.discard(attempt)
        if tried.request is not None:
            self._live[tried.request].attempts.discard(attempt)
        return tried

    def _orphan(self, request: int) -> None:
        for attempt in self._live.pop(request).attempts:
            self._attempts[attempt].request = None

    def _again(self, tried: _Attempt, fault: Fault, reason: str, now_s: float) -> list[Action]:
        """What becomes of a request whose attempt failed."""
        assert tried.request is not None
        request = self._live[tried.request]
        request.avoid.add(_key(tried.asked.teacher))
        if fault in (Fault.REFUSED, Fault.WRONG):
            request.refusals += 1
            if request.refusals >= self._limits.refusals and not self._has_other(request):
                self._orphan(tried.request)
                return [GiveUp(tried.request, f"teacher {tried.asked.teacher.teacher} {reason}")]
        if request.attempts:  # a hedge of it is under way
            return []
        if self._retries >= 1:
            self._retries -= 1
            self.retried += 1
            heapq.heappush(self._pending, tried.request)
        else:
            pause_s = self._limits.retry_pause_s * self._jitter()
            heapq.heappush(self._paused, (now_s + pause_s, tried.request))
        return []

    def _ask_whether_it_leaves(self, asked: Asked, before: Standing, now_s: float) -> list[Action]:
        """Nothing new for a teacher until it says that it serves on; what it has, it answers."""
        if asked.leaving:
            return []
        if before in (Standing.PROBED, Standing.DOWN):  # it was asked already
            asked.standing = before
            return []
        asked.probe_until(now_s + self._limits.probe_s)
        return [Probe(asked.teacher)]

    def _has_other(self, request: _Request) -> bool:
        """Whether a teacher may be expected to answer it that has not failed on it."""
        return any(asked.usable and key not in request.avoid for key, asked in self._asked.items())

    def _take_out(self, asked: Asked, fault: Fault, reason: str, now_s: float) -> list[Action]:
        """A teacher failed: nothing new for it. If it stands still, others get all that it has."""
        if asked.standing not in (Standing.DOWN, Standing.PROBED):
            self._fail(asked, reason, now_s)
        actions: list[Action] = []
        if fault is Fault.TIMEOUT:
            for attempt in sorted(asked.attempts):
                tried = self._end(attempt)
                actions.append(Drop(attempt))
                if tried.request is not None:
                    actions += self._again(tried, fault, reason, now_s)
        return actions

    def _fail(self, asked: Asked, reason: str, now_s: float) -> None:
        backoff_s = (self._limits.least_backoff_s, self._limits.longest_backoff_s)
        asked.fail(reason, now_s, backoff_s, self._jitter)

    def _time_out(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        for attempt, tried in list(self._attempts.items()):
            deadline_s = self._deadline_s(tried.asked)
            if attempt in self._attempts and now_s - tried.sent_s >= deadline_s:
                reason = f"has not answered within {deadline_s:.1f} s"
                actions.append(Drop(attempt))
                actions += self.failed(attempt, Fault.TIMEOUT, reason, now_s)
        return actions

    def _hedge(self, now_s: float) -> list[Action]:
        """Ask a second teacher for what is late, while there is nothing else to do for it."""
        actions: list[Action] = []
        for tried in list(self._attempts.values()):
            if self._pending or self._hedges < 1:
                break
            if tried.request is None or tried.hedged or now_s - tried.sent_s < self._hedge_s(tried.asked):
                continue
            request = self._live[tried.request]
            asked = self._choose(request, {_key(tried.asked.teacher)}) if len(request.attempts) == 1 else None
            if asked is None:
                continue
            tried.hedged = True
            self._hedges -= 1
            self.hedged += 1
            if tried.asked.standing is Standing.UP:
                tried.asked.standing = Standing.SLOW
            actions.append(self._send(tried.request, asked, now_s))
        return actions

    def _deadline_s(self, asked: Asked) -> float:
        p99_s = asked.latencies.p99_s or self._latencies.p99_s
        if p99_s is None:
            return self._limits.first_deadline_s
        return min(self._limits.longest_deadline_s, max(self._limits.deadline_s, self._limits.deadline_factor * p99_s))

    def _hedge_s(self, asked: Asked) -> float:
        p95_s = asked.latencies.p95_s or self._latencies.p95_s
        if p95_s is None:  # as at the start, when a frozen teacher would hold the student up for the first deadline
            return self._limits.deadline_s
        return max(self._limits.hedge_s, self._limits.hedge_factor * p95_s)

    def _look_again_at(self, tried: _Attempt) -> float:
        deadline_s = tried.sent_s + self._deadline_s(tried.asked)
        if tried.hedged or tried.request is None or self._hedges < 1:
            return deadline_s
        return min(deadline_s, tried.sent_s + self._hedge_s(tried.asked))

    def _close_idle(self) -> list[Action]:
        gone = [key for key, asked in self._asked.items() if asked.leaving and not asked.attempts]
        return [Close(self._asked.pop(key).teacher) for key in gone]


def _key(teacher: Teacher) -> _Key:
    return teacher.teacher, teacher.url, teacher.model_hash
