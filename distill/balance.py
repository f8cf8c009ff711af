"""Which teachers each student has: the same answer for every student, from the same records. [pure]

Rules, from the first to the last: every student has a teacher if there is one; every teacher has a student, as long as
one has room (max_teachers); nobody gets more than it needs while another lacks; what is left over is shared out; who
has a teacher keeps it, unless another student lacks more than SLACK of its need. A teacher has one home student (with
fewer teachers than students: a student has one home teacher); who still lacks something is let in at teachers with
time to spare, as a guest. The answer depends on the records alone, not on their order.

Why all agree: the present assignment is what the students' records say (`teachers`, `shared`), and what the balance
answers to any assignment it answers again when that has been taken up: once all students have seen the same records,
each moves at most once more. Those that read half of the others' answers repair from there
(tests/unit/test_balance_agreement.py plays reads at different moments).

How well: without max_teachers each student can get (1 - SLACK) of its need from its teachers at the same time.
"""

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from distill.records import StudentRecord, TeacherRecord

#: a student that lacks at most this part of its need is left as it is: rates and demands are measured, and a move costs
SLACK = 0.05
#: what a student needs: its demand and a little more, so that it does not wait for the slowest answer
HEADROOM = 1.1
#: exchanges of two teachers are tried with so many of the students that have most to spare
_EXCHANGES = 8

T = TypeVar("T", str, tuple[str, str])


@dataclass(frozen=True, slots=True)
class Share:
    """The teachers of one student, by id, sorted."""

    homes: tuple[str, ...] = ()
    #: teachers whose home is elsewhere (or, for a student that shares its only one, a second): those with time to spare
    shared: tuple[str, ...] = ()

    @property
    def teachers(self) -> tuple[str, ...]:
        return tuple(sorted((*self.homes, *self.shared)))


def balance(teachers: Iterable[TeacherRecord], students: Iterable[StudentRecord]) -> dict[str, Share]:
    """The share of each student. Teachers that drain are left out, those without a measured rate count as the mean."""
    crowd = {s.student: s for s in students}
    rates = known_rates(teachers)
    if not rates or not crowd:
        return {name: Share() for name in crowd}
    needs = needs_of(rates, crowd)
    by_teacher = len(rates) >= len(crowd)
    homes = _homes_of_teachers(rates, crowd, needs) if by_teacher else _homes_of_students(rates, crowd, needs)
    guests = _let_in(rates, crowd, needs, homes, by_teacher)
    return {name: Share(tuple(sorted(homes[name])), tuple(sorted(guests[name]))) for name in sorted(crowd)}


def known_rates(teachers: Iterable[TeacherRecord]) -> dict[str, float]:
    """Samples a second of each teacher that does not drain."""
    takes = [t for t in teachers if not t.draining]
    measured = [t.rate for t in takes if t.rate is not None and 0 < t.rate < math.inf]
    mean = math.fsum(measured) / len(measured) if measured else 1.0
    return {t.teacher: t.rate if t.rate is not None and 0 < t.rate < math.inf else mean for t in takes}


@dataclass(frozen=True, slots=True)
class Needs:
    """Samples a second of each student; the sum of `fair` is at most the sum of the teachers' rates."""

    #: its part of all that the teachers can do, what nobody needs included
    fair: Mapping[str, float]
    #: below this (less SLACK) it is helped: at most its fair part
    need: Mapping[str, float]


def needs_of(rates: Mapping[str, float], students: Mapping[str, StudentRecord]) -> Needs:
    """Everyone gets what it asks for up to a common level; a student that does not know asks for all it can use."""
    fastest = sorted(rates.values(), reverse=True)
    most = {n: math.fsum(fastest[: s.max_teachers]) for n, s in students.items()}
    total = math.fsum(fastest)
    wish = {}
    for name, student in students.items():
        asked = math.inf if student.demand is None else max(student.demand, 0.0) * HEADROOM
        wish[name] = min(asked, most[name])
    level = _fill(total, wish)
    left = max(0.0, total - math.fsum(level.values()))
    more = _fill(left, {name: most[name] - level[name] for name in students})
    fair = {name: level[name] + more[name] for name in students}
    return Needs(fair, level)


def _fill(total: float, limits: Mapping[str, float]) -> dict[str, float]:
    """`total` in equal parts, none above its limit; what one leaves goes to the others."""
    parts = {}
    order = sorted(limits, key=lambda name: (limits[name], name))
    for place, name in enumerate(order):
        part = max(0.0, min(limits[name], total / (len(order) - place)))
        parts[name] = part
        total -= part
    return parts


# ---- homes: things with weights in bins with targets -------------------------------------------------------------


@dataclass(slots=True)
class _Bins:
    """Where things are, while they are moved."""

    weights: Mapping[str, float]
    targets: Mapping[str, float]
    #: a bin below its least takes from others
    least: Mapping[str, float]
    room: Mapping[str, float]
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


def _homes_of_teachers(
    rates: Mapping[str, float], students: Mapping[str, StudentRecord], needs: Needs
) -> dict[str, set[str]]:
    room = {n: math.inf if s.max_teachers is None else max(1, s.max_teachers) for n, s in students.items()}
    bins = _Bins(rates, needs.fair, needs.need, room)
    claims: dict[str, list[str]] = {teacher: [] for teacher in rates}
    for name, student in students.items():
        for teacher in _present_homes(student, rates):
            claims[teacher].append(name)
    _settle(bins, claims)
    return bins.held


def _homes_of_students(
    rates: Mapping[str, float], students: Mapping[str, StudentRecord], needs: Needs
) -> dict[str, set[str]]:
    used = math.fsum(needs.fair.values()) / math.fsum(rates.values())
    targets = {teacher: rate * used for teacher, rate in rates.items()}
    bins = _Bins(needs.fair, targets, targets, dict.fromkeys(rates, math.inf))
    _settle(bins, {name: _present_homes(student, rates) for name, student in students.items()})
    homes: dict[str, set[str]] = {name: set() for name in students}
    for teacher, held in bins.held.items():
        for name in held:
            homes[name].add(teacher)
    return homes


def _present_homes(student: StudentRecord, rates: Mapping[str, float]) -> list[str]:
    return [t for t in dict.fromkeys(student.teachers) if t in rates and t not in student.shared]


def _settle(bins: _Bins, claims: Mapping[str, list[str]]) -> None:
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


def _lack(bins: _Bins, name: str) -> tuple[bool, float, str]:
    """Orders the empty before all, then who lacks most."""
    return (bool(bins.held[name]), bins.over(name), name)


def _even_out(bins: _Bins) -> None:
    """Move things to bins that lack more than SLACK, as long as that brings both nearer to their targets."""
    for _ in range(4 * (len(bins.weights) + len(bins.targets))):
        poor = [n for n in bins.targets if not bins.held[n] or bins.load[n] < bins.least[n] * (1 - SLACK)]
        rich = sorted(bins.targets, key=lambda name: (-bins.over(name), name))
        for name in sorted(poor, key=lambda name: _lack(bins, name)):
            if _help(bins, name, rich):
                break
        else:
            return


def _help(bins: _Bins, poor: str, rich: list[str]) -> bool:
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


def _best(bins: _Bins, donor: str, poor: str, moves: list[tuple[float, T]]) -> T | None:
    """The move of a weight that comes nearest to halving the gap between the two, if it is worth a move."""
    gap = bins.over(donor) - bins.over(poor)
    worth = bins.least[poor] * SLACK / 2
    able = [move for move in moves if min(move[0], gap - move[0]) > max(worth, 1e-9 * gap)]
    return min(able, key=lambda move: (abs(move[0] - gap / 2), move[1]))[1] if able else None


def _first_thing(bins: _Bins, poor: str, rich: list[str]) -> bool:
    donor = next((name for name in rich if len(bins.held[name]) > 1), None)
    if donor is None:
        return False
    fits = min(bins.over(donor), bins.targets[poor])
    thing = min(bins.held[donor], key=lambda thing: (abs(bins.weights[thing] - fits), thing))
    bins.take(thing, donor)
    bins.put(thing, poor)
    return True


# ---- guests: what is lacking from who has to spare ---------------------------------------------------------------


def _let_in(
    rates: Mapping[str, float],
    students: Mapping[str, StudentRecord],
    needs: Needs,
    homes: Mapping[str, set[str]],
    by_teacher: bool,
) -> dict[str, set[str]]:
    """The teachers at which each student is a guest: as few as cover what it lacks, its present ones first."""
    spare, lack = (_spare_of_owners if by_teacher else _spare_of_teachers)(rates, needs, homes)
    guests: dict[str, set[str]] = {name: set() for name in students}
    order = sorted((name for name in lack if lack[name] > 0), key=lambda name: (-lack[name], name))

    def visit(name: str, teacher: str) -> None:
        cap = students[name].max_teachers
        if cap is not None and len(homes[name]) + len(guests[name]) >= cap:
            return
        part = min(spare[teacher], lack[name])
        spare[teacher] -= part
        lack[name] -= part
        guests[name].add(teacher)

    tiny = 1e-9 * math.fsum(rates.values())
    for name in order:
        for teacher in sorted(set(students[name].shared) & spare.keys() - homes[name]):
            if min(spare[teacher], lack[name]) > tiny:
                visit(name, teacher)
    for name in order:
        limit = max(SLACK * needs.need[name], tiny)
        for teacher in sorted(spare, key=lambda t: (-spare[t], t)) if lack[name] > limit else ():
            if lack[name] > limit and spare[teacher] > tiny and teacher not in homes[name] | guests[name]:
                visit(name, teacher)
    return guests


def _spare_of_owners(
    rates: Mapping[str, float], needs: Needs, homes: Mapping[str, set[str]]
) -> tuple[dict[str, float], dict[str, float]]:
    """What each teacher could do for others, and what each student lacks, when every teacher has one home."""
    spare: dict[str, float] = {}
    lack: dict[str, float] = {}
    for name, own in homes.items():
        over = math.fsum(rates[teacher] for teacher in own) - needs.need[name]
        lack[name] = max(0.0, -over)
        for teacher in sorted(own, key=lambda t: (-rates[t], t)):
            spare[teacher] = max(0.0, min(rates[teacher], over))
            over -= spare[teacher]
    return spare, lack


def _spare_of_teachers(
    rates: Mapping[str, float], needs: Needs, homes: Mapping[str, set[str]]
) -> tuple[dict[str, float], dict[str, float]]:
    """The same, when every student has one home: a teacher is divided by the needs of its students."""
    wanted: dict[str, list[float]] = {teacher: [] for teacher in rates}
    for name, own in homes.items():
        for teacher in own:
            wanted[teacher].append(needs.need[name])
    sums = {teacher: math.fsum(parts) for teacher, parts in wanted.items()}
    spare = {teacher: max(0.0, rate - sums[teacher]) for teacher, rate in rates.items()}
    lack = {}
    for name, own in homes.items():
        short = max((1 - rates[t] / sums[t] for t in own if sums[t] > rates[t]), default=0.0)
        lack[name] = needs.need[name] * short
    return spare, lack
