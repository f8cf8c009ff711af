"""The fewest teachers that students of a small crowd must take up for all to have what they need. [pure]

An assignment is *good* when no teacher is idle, no student without one, and all can have `least` of their needs at the
same time. Among the good ones those with the fewest teachers newly taken up are found by trying all, in order of their
number, up to TRIES; to give one up costs nothing, and whoever can do without a teacher that others use gives it up. Of
equals the one with most for the worst off is taken, then the first by name, so that everybody finds the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import comb

#: more students are not tried: the work doubles with each
MOST_STUDENTS = 6
#: assignments that are looked at, at most
TRIES = 1500
#: of the rates: rounding must decide nothing
_TINY = 1e-6

#: for each student the teachers that it has, a bit for each
Way = tuple[int, ...]


class Crowd:
    """Rates of teachers and needs of students, each in the order of their names."""

    def __init__(self, rates: Mapping[str, float], needs: Mapping[str, float]) -> None:
        self.teachers, self.students = sorted(rates), sorted(needs)
        self._rates = [rates[name] for name in self.teachers]
        self._needs = [needs[name] for name in self.students]
        self._all = (1 << len(self.teachers)) - 1
        self._able = {0: 0.0}
        #: by crowd of students (a bit for each): what they need together
        self._wanted = [
            sum(need for index, need in enumerate(self._needs) if crowd >> index & 1)
            for crowd in range(1 << len(self.students))
        ]

    def way(self, has: Mapping[str, Sequence[str]]) -> Way:
        """The teachers of `has` that are there."""
        return tuple(
            sum(1 << bit for bit, name in enumerate(self.teachers) if name in has[student]) for student in self.students
        )

    def names(self, way: Way) -> dict[str, list[str]]:
        return {
            student: [name for bit, name in enumerate(self.teachers) if mask >> bit & 1]
            for student, mask in zip(self.students, way, strict=True)
        }

    def part(self, way: Way) -> float:
        """The part of their needs that all can have at the same time; 0 with an idle teacher or a lonely student.

        By the theorem of Gale and Hoffman: as much as the worst off of all crowds of students can get together.
        """
        reached = [0]
        for mask in way:
            reached += [known | mask for known in reached]
        if reached[-1] != self._all or not all(way):
            return 0.0
        parts = (self._sum(mask) / want for mask, want in zip(reached, self._wanted, strict=True) if want > 0)
        return min(parts, default=1.0)

    def _sum(self, mask: int) -> float:
        able = self._able.get(mask)
        if able is None:
            able = sum(rate for bit, rate in enumerate(self._rates) if mask >> bit & 1)
            self._able[mask] = able
        return able

    def least_additions(self, way: Way) -> int:
        """No good assignment is reached with fewer."""
        used = 0
        for mask in way:
            used |= mask
        return max((self._all & ~used).bit_count(), way.count(0))

    def with_more(self, way: Way, count: int) -> Iterator[Way]:
        """All ways in which `count` more teachers are taken up."""
        free = [(s, bit) for s, mask in enumerate(way) for bit in range(len(self.teachers)) if not mask >> bit & 1]
        for added in combinations(free, count):
            masks = list(way)
            for student, bit in added:
                masks[student] |= 1 << bit
            yield tuple(masks)

    def without_needless(self, way: Way, least: float) -> Way:
        """Each gives up the teachers that it can do without; who has most for its needs goes first.

        What is left is answered again: no other that is given up later makes one of these needless.
        """
        least *= 1 - _TINY
        for student, bit in self._by_plenty(way):
            fewer = (*way[:student], way[student] & ~(1 << bit), *way[student + 1 :])
            if way[student] >> bit & 1 and self.part(fewer) >= min(least, self.part(way)):
                way = fewer
        return way

    def _by_plenty(self, way: Way) -> list[tuple[int, int]]:
        plenty = [self._sum(mask) - need for mask, need in zip(way, self._needs, strict=True)]
        edges = [(s, bit) for s, mask in enumerate(way) for bit in range(len(self.teachers)) if mask >> bit & 1]
        return sorted(edges, key=lambda edge: (-plenty[edge[0]], -self._rates[edge[1]], edge))


def fewest(crowd: Crowd, now: Way, least: float) -> Way | None:
    """The good assignment that is nearest to `now`; None when there are too many to try."""
    free = len(now) * len(crowd.teachers) - sum(mask.bit_count() for mask in now)
    tries = 0
    for count in range(crowd.least_additions(now), free + 1):
        tries += comb(free, count)
        if tries > TRIES:
            return None
        good = [(crowd.part(way), way) for way in crowd.with_more(now, count)]
        part, best = max(good, key=lambda found: (round(min(found[0], 1.0), 6), [-mask for mask in found[1]]))
        if part >= least * (1 - _TINY):
            return crowd.without_needless(best, least)
    return None
