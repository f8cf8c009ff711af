"""Things with weights in bins with targets: few moves that bring each bin near its target. [pure]

For distill.balance, where the things are teachers and the bins students, or the other way round. A thing stays where
it is, unless a bin is empty or lacks more than `slack` of the least that it should have; no bin gets more things than
it has room for. The same arguments give the same answer, in whatever order.
"""

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

#: exchanges of two things are tried with so many of the bins that have most to spare
_EXCHANGES = 8

T = TypeVar("T", str, tuple[str, str])


@dataclass(slots=True)
class Bins:
    """Where things are, while they are moved."""

    weights: Mapping[str, float]
    targets: Mapping[str, float]
    #: a bin below its least takes from others
    least: Mapping[str, float]
    #: how many things each may have
    room: Mapping[str, float]
    slack: float
    held: dict[str, set[str]] = field(default_factory=dict)
    load: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.held = {name: set() for name in self.targets}
        self.load = dict.fromkeys(self.targets, 0.0)

    def put(self, thing: str, into: str) -> None:
        self.held[into].add(thing)
        self._weigh(into)

    def take(self, thing: str, out_of: str) -> None:
        self.held[out_of].discard(thing)
        self._weigh(out_of)

    def over(self, name: str) -> float:
        return self.load[name] - self.targets[name]

    def has_room(self, name: str) -> bool:
        return len(self.held[name]) < self.room[name]

    def _weigh(self, name: str) -> None:
        # fsum does not depend on the order: two ways to the same bin give the same number
        self.load[name] = math.fsum(self.weights[thing] for thing in self.held[name])


def settle(bins: Bins, claims: Mapping[str, list[str]]) -> None:
    """Put each thing where it is, if nobody else claims it; then the others where most is lacking; then even out."""
    by_weight = sorted(bins.weights, key=lambda thing: (-bins.weights[thing], thing))
    for thing in by_weight:
        if len(claims[thing]) == 1 and bins.has_room(claims[thing][0]):
            bins.put(thing, claims[thing][0])
    for thing in by_weight:
        if len(claims[thing]) > 1:
            able = [name for name in claims[thing] if bins.has_room(name)]
            if able:
                bins.put(thing, min(able, key=lambda name: (bins.over(name), name)))
    homeless = set(by_weight).difference(*bins.held.values())
    queue = [_lack(bins, name) for name in bins.targets if bins.has_room(name)]
    heapq.heapify(queue)
    for thing in by_weight:
        if thing in homeless and queue:
            name = heapq.heappop(queue)[-1]
            bins.put(thing, name)
            if bins.has_room(name):
                heapq.heappush(queue, _lack(bins, name))
    _even_out(bins)


def _lack(bins: Bins, name: str) -> tuple[bool, float, str]:
    """Orders the empty before all, then who lacks most."""
    return (bool(bins.held[name]), bins.over(name), name)


def _even_out(bins: Bins) -> None:
    """Move things to bins that lack more than the slack, as long as that brings both nearer to their targets."""
    for _ in range(4 * (len(bins.weights) + len(bins.targets))):
        poor = [n for n in bins.targets if not bins.held[n] or bins.load[n] < bins.least[n] * (1 - bins.slack)]
        rich = sorted(bins.targets, key=lambda name: (-bins.over(name), name))
        for name in sorted(poor, key=lambda name: _lack(bins, name)):
            if _help(bins, name, rich):
                break
        else:
            return


def _help(bins: Bins, poor: str, rich: list[str]) -> bool:
    """Make the best of the single moves from the richest bin that has one, else an exchange; False if there is none."""
    if not bins.held[poor]:
        return _first_thing(bins, poor, rich)
    for donor in rich if bins.has_room(poor) else ():
        if len(bins.held[donor]) < 2 or donor == poor:
            continue
        moves = [(bins.weights[thing], thing) for thing in bins.held[donor]]
        found = _best(bins, donor, poor, moves)
        if found is not None:
            bins.take(found, donor)
            bins.put(found, poor)
            return True
    for donor in rich[:_EXCHANGES]:
        pairs = [
            (bins.weights[there] - bins.weights[here], (there, here))
            for there in bins.held[donor]
            for here in bins.held[poor]
            if donor != poor
        ]
        exchange = _best(bins, donor, poor, pairs)
        if exchange is not None:
            for thing, out_of, into in ((exchange[0], donor, poor), (exchange[1], poor, donor)):
                bins.take(thing, out_of)
                bins.put(thing, into)
            return True
    return False


def _best(bins: Bins, donor: str, poor: str, moves: list[tuple[float, T]]) -> T | None:
    """The move of a weight that comes nearest to halving the gap between the two, if it is worth a move."""
    gap = bins.over(donor) - bins.over(poor)
    worth = bins.least[poor] * bins.slack / 2
    able = [move for move in moves if min(move[0], gap - move[0]) > max(worth, 1e-9 * gap)]
    return min(able, key=lambda move: (abs(move[0] - gap / 2), move[1]))[1] if able else None


def _first_thing(bins: Bins, poor: str, rich: list[str]) -> bool:
    donor = next((name for name in rich if len(bins.held[name]) > 1), None)
    if donor is None:
        return False
    fits = min(bins.over(donor), bins.targets[poor])
    thing = min(bins.held[donor], key=lambda thing: (abs(bins.weights[thing] - fits), thing))
    bins.take(thing, donor)
    bins.put(thing, poor)
    return True
