"""Slots for jobs: minimums by priority, the rest by fulfilment, nothing that does not pay, and it stays."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from edl_collective.coord.records import Speed
from jobserver.gain import Outlook
from jobserver.shares import Claim, Shares, share

SLOW = Outlook((Speed(1, 10.0), Speed(2, 10.1)), pause_s=5.0)


def parted(claims: Sequence[Claim], capacity: int, ceiling: float = 1.0) -> list[int]:
    counts = share(claims, capacity, ceiling).counts
    return [counts[claim.job] for claim in claims]


def test_what_is_left_after_the_minimums_levels_the_fulfilment() -> None:
    assert parted([Claim("a", 1, 5), Claim("b", 1, 9)], 8) == [3, 5]
    assert parted([Claim("a", 2, 2), Claim("b", 1, 3), Claim("c", 1, 3)], 5) == [2, 2, 1]


def test_a_higher_priority_grows_first_and_takes_the_minimum_of_a_lower_one() -> None:
    high, low = Claim("high", 2, 6, priority=5), Claim("low", 2, 6)
    assert parted([high, low], 9) == [6, 3]
    shares = share([high, replace(low, held=3, started=True)], 3)
    assert (shares.counts, shares.preempted) == ({"high": 2, "low": 1}, {"low": "high"})
    assert shares.missing == {"low": 1}


def test_equals_never_take_a_minimum_and_who_lost_nodes_was_not_preempted() -> None:
    shares = share([Claim("old", 2, 2, held=2, started=True), Claim("new", 2, 2)], 3)
    assert (shares.counts, shares.preempted) == ({"old": 2, "new": 0}, {})
    lost = share([Claim("high", 2, 2, held=2, started=True, priority=1), Claim("low", 3, 3, held=1, started=True)], 3)
    assert (lost.counts["low"], lost.preempted) == (1, {})


def test_the_load_ceiling_holds_growth_back_and_no_minimum() -> None:
    assert parted([Claim("a", 1, 10)], 10, 0.8) == [8]
    assert parted([Claim("a", 9, 10)], 10, 0.8) == [9]


def test_an_overdue_job_is_not_overtaken_by_a_later_start() -> None:
    big, small = Claim("big", 4, 4), Claim("small", 1, 2)
    assert parted([big, small], 3) == [0, 2]
    shares = share([replace(big, overdue=True), small, Claim("runs", 1, 1, held=1, started=True)], 3)
    assert (shares.counts, shares.behind) == ({"big": 0, "small": 0, "runs": 1}, {"small": "big"})


def test_growth_that_does_not_pay_leaves_the_slots_to_others() -> None:
    grows, other = Claim("slow", 1, 8, held=2, started=True, outlook=SLOW), Claim("other", 1, 8, held=2, started=True)
    assert parted([grows, other], 8) == [2, 6]
    assert parted([replace(grows, held=0), other], 8) == [4, 4], "who has nothing begins at once as large as it may"


def test_growth_pays_by_what_is_left_to_train() -> None:
    measured = (Speed(2, 100.0), Speed(4, 180.0))
    assert Outlook(measured, pause_s=2.0).pays(2, 4)
    assert not Outlook(measured, pause_s=2.0, left=300).pays(2, 4), "3 s of training are left"
    assert Outlook((), pause_s=2.0).pays(2, 4)
    assert Outlook(measured).pays(2, 4), "no pause has been measured"


def test_a_size_that_was_not_measured_is_predicted() -> None:
    law = Outlook(tuple(Speed(n, n * 50 / (1 + 0.1 * (n - 1))) for n in (1, 2, 4)))
    expected = 8 * 50 / 1.7
    assert abs((law.rate(8) or 0) - expected) < 1e-6
    assert Outlook((Speed(2, 100.0),)).rate(4) == 200.0


claims = st.lists(
    st.builds(
        lambda least, more, held, started, priority, overdue, slow, name: Claim(
            f"j{name}", least, least + more, held if started else 0, started, priority, overdue, slow
        ),
        least=st.integers(1, 4),
        more=st.integers(0, 6),
        held=st.integers(0, 10),
        started=st.booleans(),
        priority=st.integers(0, 2),
        overdue=st.booleans(),
        slow=st.sampled_from([Outlook(), SLOW, Outlook((Speed(1, 10.0), Speed(3, 29.0)), pause_s=1.0)]),
        name=st.integers(0, 999),
    ),
    max_size=6,
    unique_by=lambda claim: claim.job,
).map(lambda found: sorted(found, key=lambda claim: -claim.priority))
capacities = st.integers(0, 24)


@given(claims, capacities, st.sampled_from([1.0, 0.9, 0.5]))
@settings(max_examples=400, deadline=None)
def test_bounds_and_order(found: list[Claim], capacity: int, ceiling: float) -> None:
    shares = share(found, capacity, ceiling)
    counts = shares.counts
    assert sum(counts.values()) <= capacity
    left = capacity
    for claim in found:
        assert 0 <= counts[claim.job] <= claim.want
        if claim.job in shares.missing or claim.job in shares.behind:
            assert counts[claim.job] < claim.min_np
        else:
            assert claim.min_np <= counts[claim.job] <= claim.want
        if claim.job in shares.missing:
            assert claim.min_np > left, "only who does not fit after those before it goes without"
        left -= min(counts[claim.job], claim.min_np)
    for victim, taker in shares.preempted.items():
        assert _of(found, taker).priority > _of(found, victim).priority


@given(claims, capacities, st.sampled_from([1.0, 0.8]))
@settings(max_examples=400, deadline=None)
def test_carried_out_it_stays(found: list[Claim], capacity: int, ceiling: float) -> None:
    shares = share(found, capacity, ceiling)
    after = [_carried_out(claim, shares) for claim in found]
    assert share(after, capacity, ceiling).counts == shares.counts


@given(claims, capacities)
@settings(max_examples=300, deadline=None)
def test_each_next_slot_goes_to_the_lowest_fulfilment(found: list[Claim], capacity: int) -> None:
    """The same as giving them one by one, and so no way to part them has a higher lowest fulfilment."""
    found = [replace(claim, priority=0, outlook=Outlook(), overdue=False) for claim in found][:3]
    shares = share(found, capacity)
    able = [c for c in found if c.job not in shares.missing and c.want > c.min_np]
    free = capacity - sum(min(shares.counts[c.job], c.min_np) for c in found)
    spans = [c.want - c.min_np for c in able]
    more = [0] * len(able)
    for _ in range(min(free, sum(spans))):
        open_ones = [i for i in range(len(able)) if more[i] < spans[i]]
        more[min(open_ones, key=lambda i: (more[i] / spans[i], i))] += 1
    assert [shares.counts[c.job] - c.min_np for c in able] == more
    ways = (way for way in product(*(range(s + 1) for s in spans)) if sum(way) <= free)
    lowest = max((min(_levels(way, spans), default=0.0) for way in ways), default=0.0)
    assert min(_levels(more, spans), default=0.0) == lowest


@given(claims, capacities)
@settings(max_examples=200, deadline=None)
def test_nobody_waits_for_ever_behind_equals(found: list[Claim], capacity: int) -> None:
    """Whoever has waited too long begins once those that train end, whatever comes behind it meanwhile."""
    found = [replace(claim, priority=0) for claim in found if claim.min_np <= capacity]
    waiting = [claim for claim in found if not claim.started]
    for number in range(len(found) + 1):
        newcomer = Claim(f"new{number}", 1, 1)
        shares = share([*(replace(c, overdue=not c.started) for c in found), newcomer], capacity)
        found = [_carried_out(c, shares) for c in found]
        if all(c.started for c in found):
            return
        ended = next((c for c in found if c.started and c.held), None)
        found = [c for c in found if c is not ended]
    assert all(c.started for c in found if c in waiting)


def _levels(more: Sequence[int], spans: Sequence[int]) -> list[float]:
    return [m / s for m, s in zip(more, spans, strict=True)]


def _of(found: Sequence[Claim], job: str) -> Claim:
    return next(claim for claim in found if claim.job == job)


def _carried_out(claim: Claim, shares: Shares) -> Claim:
    count = shares.counts[claim.job]
    return replace(claim, held=count, started=claim.started or count >= claim.min_np)
