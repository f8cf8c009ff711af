"""How many slots each job may have. [pure]

Claims come in the order in which jobs are served: by priority, then by time of submission. Invariants:

- never more than there is, never more than a job wants;
- minimums first, in that order: a job of lower priority gives up even its minimum for that of a higher one, whoever is
  equal never does; what a job in the world below its minimum still holds, it keeps, so that the training state lives;
- beyond the minimums the highest priority is served first, and within one priority the job with the lowest fulfilment
  (held beyond the minimum) / (wanted beyond the minimum) gets the next slot, up to the load ceiling;
- nobody is resized where that is not expected to pay (jobserver.gain), unless others need its slots;
- a job that waits too long keeps those behind it from beginning (`overdue`): what others give back adds up to its
  minimum, so no job of its priority overtakes it for ever;
- what jobs hold matters only below a minimum and where growth has to pay, so the answer stays when it has been carried
  out, whatever the order in which that was done.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import ceil

from jobserver.gain import Outlook


@dataclass(frozen=True, slots=True)
class Claim:
    """What one job asks for: `min_np` <= `want`."""

    job: str
    min_np: int
    want: int
    #: its living workers
    held: int = 0
    #: it has been given its minimum before
    started: bool = False
    #: higher is served first
    priority: int = 0
    #: it has waited for its minimum for so long that no job behind it may begin before it
    overdue: bool = False
    outlook: Outlook = field(default_factory=Outlook)
    #: of its living workers those in slots that nobody else can have: they cost nothing of the capacity
    bound: int = 0

    def cost(self, count: int) -> int:
        """Of the capacity, for `count` workers."""
        return max(0, count - self.bound)


@dataclass(frozen=True, slots=True)
class Shares:
    """By job. `missing`: slots that the cluster lacks for the minimum of those that cannot have it."""

    counts: Mapping[str, int]
    missing: Mapping[str, int]
    #: who gives up its minimum, and for whom
    preempted: Mapping[str, str]
    #: who waits only behind an overdue job, and which
    behind: Mapping[str, str]


def share(claims: Sequence[Claim], capacity: int, load_ceiling: float = 1.0) -> Shares:
    """Part `capacity` slots among `claims`, which come in the order of their claim.

    load_ceiling: the part of the slots up to which jobs get more than their minimum; the rest is kept for who comes.
    """
    claims = [_keeping_bound(claim) for claim in claims]
    counts, missing, preempted, behind = _minimums(claims, capacity)
    able = [claim for claim in claims if claim.job not in missing and claim.job not in behind]
    free = min(capacity, int(capacity * load_ceiling)) - sum(claim.cost(counts[claim.job]) for claim in claims)
    return Shares(_grow_where_it_pays(able, counts, max(0, free)), missing, preempted, behind)


def _keeping_bound(claim: Claim) -> Claim:
    """Nobody gains by what a job gives up in slots that nobody else can have: what it wants of them it keeps."""
    least = max(claim.min_np, min(claim.bound, claim.want))
    return claim if least == claim.min_np else replace(claim, min_np=least)


def _minimums(
    claims: Sequence[Claim], capacity: int
) -> tuple[dict[str, int], dict[str, int], dict[str, str], dict[str, str]]:
    counts: dict[str, int] = {}
    missing: dict[str, int] = {}
    preempted: dict[str, str] = {}
    behind: dict[str, str] = {}
    left = capacity
    overdue: str | None = None
    taker: Claim | None = None
    for claim in claims:
        count = claim.min_np
        if not claim.started and overdue is not None:
            behind[claim.job] = overdue
            count = 0
        elif claim.cost(count) > left:
            missing[claim.job] = claim.cost(count) - left
            count = min(claim.held, left + min(claim.bound, claim.held)) if claim.started else 0
            if taker is not None and claim.held >= claim.min_np and taker.priority > claim.priority:
                preempted[claim.job] = taker.job
            if claim.overdue and overdue is None:
                overdue = claim.job
        elif claim.held < claim.min_np and taker is None:
            taker = claim
        counts[claim.job] = count
        left -= claim.cost(count)
    return counts, missing, preempted, behind


def _grow_where_it_pays(claims: Sequence[Claim], least: Mapping[str, int], free: int) -> dict[str, int]:
    """Whoever would grow for nothing is asked to want no more than it has, and the others are served again."""
    while True:
        counts = _grow(claims, least, free)
        idle = {c.job for c in claims if 0 < c.held < counts[c.job] and not _pays(c, counts[c.job])}
        if not idle:
            return counts
        claims = [replace(c, want=max(c.min_np, c.held)) if c.job in idle else c for c in claims]


def _pays(claim: Claim, count: int) -> bool:
    return claim.held < claim.min_np or claim.outlook.pays(claim.held, count)


def _grow(claims: Sequence[Claim], least: Mapping[str, int], free: int) -> dict[str, int]:
    counts = dict(least)
    for _, group in groupby(claims, key=lambda claim: claim.priority):
        members = [claim for claim in group if claim.want > claim.min_np]
        for claim, more in zip(members, _level(members, free), strict=True):
            counts[claim.job] += more
            free -= more
    return counts


def _level(claims: Sequence[Claim], free: int) -> list[int]:
    """Slots beyond the minimum of each, so that the lowest fulfilment is as high as it can be, then the next."""
    spans = [claim.want - claim.min_np for claim in claims]
    if sum(spans) <= free:
        return spans
    more = _sure(spans, free)
    left = free - sum(more)
    waiting = [_turn(spans[i], more[i], i) for i in range(len(claims))]
    heapq.heapify(waiting)
    while left > 0:
        *_, i = heapq.heappop(waiting)
        more[i] += 1
        left -= 1
        if more[i] < spans[i]:
            heapq.heappush(waiting, _turn(spans[i], more[i], i))
    return more


def _turn(span: int, more: int, place: int) -> tuple[float, int]:
    """When the next slot is its turn: by fulfilment; among equals the first in order."""
    return more / span, place


def _sure(spans: Sequence[int], free: int) -> list[int]:
    """Nearly all of what giving one slot after the other leads to, without doing it."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if sum(ceil(middle * span) for span in spans) <= free:  # all slots whose turn is at a lower fulfilment
            low = middle
        else:
            high = middle
    return [max(0, ceil(low * span) - 1) for span in spans]
