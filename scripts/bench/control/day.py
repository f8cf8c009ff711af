"""A simulated day of a cluster: jobs come, nodes go and come back, a rule parts the slots.

Only the rules differ between two days: submissions, sizes, speeds, losses of nodes and what a resize costs are the same
for each. A resize stops a job for PAUSE_S; what it grows by starts START_S before and holds its slots meanwhile.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobserver.gain import Outlook, remember
from jobserver.shares import Claim

DAY_S = 86_400.0
PAUSE_S, START_S = 0.5, 15.0
#: jobs come during the first 18 hours
_COMING_S = 0.75 * DAY_S
#: of a node, and how long it stays away
LOST_EVERY_S, AWAY_S = 20 * DAY_S, 3600.0

#: how many slots each job may have, by job: the claims come in the order of submission
Rule = Callable[[Sequence[Claim], int], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Submission:
    """A job as its user submits it. rate(n) = n / (1 + loss * (n - 1)) of one worker's speed; `work` in its seconds."""

    job: str
    at_s: float
    min_np: int
    max_np: int
    work: float
    loss: float
    priority: int = 0

    @property
    def asked(self) -> int:
        """What a user names who has to name one number."""
        return (self.min_np + self.max_np) // 2

    def rate(self, np: int) -> float:
        return np / (1 + self.loss * (np - 1)) if np else 0.0


@dataclass(slots=True)
class _Job:
    submitted: Submission
    left: float
    count: int = 0
    #: what is held but starts yet
    rising: int = 0
    began_s: float | None = None
    paused_until_s: float = 0.0
    outlook: Outlook = field(default_factory=Outlook)

    def claim(self, now_s: float, patience_s: float) -> Claim:
        s = self.submitted
        overdue = self.began_s is None and now_s - s.at_s >= patience_s
        outlook = replace(self.outlook, left=int(self.left))
        held = self.count + self.rising
        return Claim(s.job, s.min_np, s.max_np, held, self.began_s is not None, s.priority, overdue, outlook)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one day under one rule. Parts of all slot seconds: given to a job, and worth of training done in them."""

    used: float
    trained: float
    mean_wait_s: float
    longest_wait_s: float
    finished: int
    mean_completion_s: float
    resizes: int
    decisions: int


def submissions(count: int, slots: int, seed: int, load: float = 1.0) -> list[Submission]:
    """`count` jobs over the first 18 hours which, each halfway from its least to its most workers, would use `load`
    times the slots of that time."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        least = rng.choice([1, 4, 16, 64, 128, 256])
        most = least * rng.choice([1, 2, 4, 8])
        work = rng.lognormvariate(0, 0.8)  # in units that are set below
        loss = rng.choice([0.0, 0.0002, 0.001, 0.004])
        found.append(Submission(f"j{number}", rng.uniform(0, _COMING_S), least, most, work, loss, int(number % 5 == 0)))
    unit_s = load * slots * _COMING_S / sum(job.work * job.asked for job in found)
    timed = [replace(job, work=job.work * unit_s * job.rate(job.asked)) for job in found]
    return sorted(timed, key=lambda job: job.at_s)


def simulate(
    rule: Rule, jobs: Sequence[Submission], nodes: int, slots_per_node: int, seed: int, every_s: float | None = None,
    patience_s: float = 600.0,
) -> Outcome:  # fmt: skip
    """One day. every_s: the rule is asked by the clock; None: whenever something changes."""
    return _Day(rule, jobs, nodes, slots_per_node, seed, every_s, patience_s).run()


class _Day:
    def __init__(
        self, rule: Rule, jobs: Sequence[Submission], nodes: int, slots_per_node: int, seed: int,
        every_s: float | None, patience_s: float,
    ) -> None:  # fmt: skip
        self._rule, self._every_s, self._patience_s = rule, every_s, patience_s
        self._whole = nodes * slots_per_node
        self._capacity = self._whole
        self._jobs: dict[str, _Job] = {}
        self._done: list[tuple[Submission, float]] = []
        self._waits: list[float] = []
        self._used = self._trained = 0.0
        self._resizes = self._decisions = 0
        self._now_s = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for job in jobs:
            self._at(job.at_s, lambda job=job: self._submit(job))  # type: ignore[misc]
        rng = random.Random(seed)
        for _ in range(nodes):
            at_s = rng.expovariate(1 / LOST_EVERY_S)
            if at_s < DAY_S:
                self._at(at_s, lambda: self._resize_cluster(-slots_per_node))
                self._at(at_s + AWAY_S, lambda: self._resize_cluster(slots_per_node))
        if every_s is not None:
            self._at(every_s, self._tick)

    def run(self) -> Outcome:
        while self._events and self._events[0][0] <= DAY_S:
            at_s = self._events[0][0]
            self._pass(at_s)
            while self._events and self._events[0][0] <= at_s:
                heapq.heappop(self._events)[2]()
            self._finish_jobs()
            if self._every_s is None:
                self._decide()
        self._pass(DAY_S)
        waits = [*self._waits, *(DAY_S - j.submitted.at_s for j in self._jobs.values() if j.began_s is None)]
        took = [end_s - job.at_s for job, end_s in self._done]
        area = self._whole * DAY_S
        return Outcome(
            self._used / area, self._trained / area, sum(waits) / len(waits), max(waits), len(self._done),
            sum(took) / len(took) if took else 0.0, self._resizes, self._decisions,
        )  # fmt: skip

    def _at(self, at_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), what))

    def _submit(self, job: Submission) -> None:
        self._jobs[job.job] = _Job(job, job.work)
        self._at(job.at_s + self._patience_s, _nothing)

    def _resize_cluster(self, slots: int) -> None:
        """A lost node takes the workers of whoever has most above its minimum, as spread jobs lose them."""
        self._capacity += slots
        while sum(j.count + j.rising for j in self._jobs.values()) > self._capacity:
            victim = max(self._jobs.values(), key=lambda j: (j.count > j.submitted.min_np, j.count))
            victim.count -= 1
            self._pause(victim)

    def _tick(self) -> None:
        self._decide()
        assert self._every_s is not None
        self._at(self._now_s + self._every_s, self._tick)

    def _pass(self, until_s: float) -> None:
        """Everybody trains from now until then."""
        for job in self._jobs.values():
            s = job.submitted
            span_s = max(0.0, until_s - max(self._now_s, job.paused_until_s))
            self._used += (job.count + job.rising) * (until_s - self._now_s)
            if job.count >= s.min_np:
                done = min(job.left, s.rate(job.count) * span_s)
                job.left -= done
                self._trained += done
        self._now_s = until_s

    def _finish_jobs(self) -> None:
        for name, job in list(self._jobs.items()):
            if job.left <= 1e-6 * job.submitted.work:
                self._done.append((job.submitted, self._now_s))
                del self._jobs[name]

    def _decide(self) -> None:
        self._decisions += 1
        claims = [job.claim(self._now_s, self._patience_s) for job in self._jobs.values()]
        counts = self._rule(claims, self._capacity)
        for name, job in self._jobs.items():
            self._change(job, counts.get(name, 0))
        self._next_end()

    def _change(self, job: _Job, count: int) -> None:
        held = job.count + job.rising
        if count < held:
            drop = min(job.rising, held - count)
            job.rising -= drop
            if count < job.count:
                job.count = count
                self._pause(job)
        elif count > held:
            job.rising += count - held
            self._at(self._now_s + START_S, lambda: self._started(job))

    def _started(self, job: _Job) -> None:
        if job.rising and job.submitted.job in self._jobs:
            job.count += job.rising
            job.rising = 0
            if job.began_s is None and job.count >= job.submitted.min_np:
                job.began_s = self._now_s
                self._waits.append(self._now_s - job.submitted.at_s)
            self._pause(job)
            self._next_end()

    def _pause(self, job: _Job) -> None:
        self._resizes += 1
        job.paused_until_s = self._now_s + PAUSE_S
        measured = remember(job.outlook.measured, job.count, job.submitted.rate(job.count))
        job.outlook = Outlook(measured, PAUSE_S)

    def _next_end(self) -> None:
        """Wake when the first job ends, if nothing else happens before."""
        ends = [
            max(self._now_s, j.paused_until_s) + j.left / j.submitted.rate(j.count)
            for j in self._jobs.values()
            if j.count >= j.submitted.min_np
        ]
        if ends and min(ends) <= DAY_S:
            self._at(min(ends), _nothing)


def _nothing() -> None:
    """The time alone matters."""
