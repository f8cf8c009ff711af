"""Which teachers each student has: the same answer for every student, from the same records. [pure]

Rules, from the first to the last: every student has a teacher if there is one; every teacher has a student, as long as
one has room (max_teachers); nobody gets more than it needs while another lacks; what is left over is shared out; as few
teachers as can be are newly taken up, and none while no student lacks more than SLACK of its need. A teacher has one
home student (with fewer teachers than students: a student has one home teacher); who still lacks something is let in at
teachers with time to spare, as a guest. The answer depends on the records alone, not on their order.

Why all agree: the present assignment is what the students' records say (`teachers`, `shared`), and what the balance
answers to any assignment it answers again when that has been taken up: once all students have seen the same records,
each moves at most once more. Those that read half of the others' answers repair from there
(tests/unit/test_balance_agreement.py plays reads at different moments).

How well: without max_teachers each student can get (1 - SLACK) of its need from its teachers at the same time. For a
few students without max_teachers no other way to that takes up fewer teachers (distill.fewest tries all, up to a number
of them); beyond, a local search (distill.bins) takes up more, for the fewest are a partition problem.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from msgspec import structs

from distill import fewest
from distill.bins import Bins, settle
from distill.records import StudentRecord, TeacherRecord

#: a student that lacks at most this part of its need is left as it is: rates and demands are measured, and a move costs
SLACK = 0.05
#: what a student needs: its demand and a little more, so that it does not wait for the slowest answer
HEADROOM = 1.1
#: a repair may leave something for the next one to mend; what is answered is what the last one leaves as it is
_REPAIRS = 8


@dataclass(frozen=True, slots=True)
class Share:
    """The teachers of one student, by id, sorted."""

    homes: tuple[str, ...] = ()
    #: teachers whose home is elsewhere (or, for a student that shares its only one, a second): those with time to spare
    shared: tuple[str, ...] = ()

    @property
    def teachers(self) -> tuple[str, ...]:
        return tuple(sorted((*self.homes, *self.shared)))


@dataclass(frozen=True, slots=True)
class Needs:
    """Samples a second of each student; the sum of `fair` is at most the sum of the teachers' rates."""

    #: its part of all that the teachers can do, what nobody needs included
    fair: Mapping[str, float]
    #: below this (less SLACK) it is helped: at most its fair part
    need: Mapping[str, float]


def balance(teachers: Iterable[TeacherRecord], students: Iterable[StudentRecord]) -> dict[str, Share]:
    """The share of each student. Teachers that drain are left out, those without a measured rate count as the mean."""
    crowd = {s.student: s for s in students}
    rates = known_rates(teachers)
    if not rates or not crowd:
        return {name: Share() for name in crowd}
    needs = needs_of(rates, crowd)
    if len(crowd) > fewest.MOST_STUDENTS or any(s.max_teachers is not None for s in crowd.values()):
        return _mended(rates, crowd, needs)
    small = fewest.Crowd(rates, needs.need)
    way = fewest.fewest(small, small.way({name: s.teachers for name, s in crowd.items()}), 1 - SLACK)
    if way is None:  # too many to try all
        mended = _mended(rates, crowd, needs)
        way = small.without_needless(small.way({name: share.teachers for name, share in mended.items()}), 1 - SLACK)
    return _labelled(small.names(way), rates, crowd)


def _mended(rates: Mapping[str, float], crowd: Mapping[str, StudentRecord], needs: Needs) -> dict[str, Share]:
    """What the present assignment becomes when it is repaired until there is nothing to mend."""
    shares = _repair(rates, crowd, needs)
    for _ in range(_REPAIRS):
        before, shares = (
            shares,
            _repair(rates, {name: _with(crowd[name], share) for name, share in shares.items()}, needs),
        )
        if shares == before:
            break
    return shares


def _labelled(
    has: Mapping[str, list[str]], rates: Mapping[str, float], students: Mapping[str, StudentRecord]
) -> dict[str, Share]:
    """Which are homes: one student of each teacher, or one teacher of each student, as it was if that can be."""
    was = {name: set(_present_homes(student, rates)) for name, student in students.items()}
    homes: dict[str, set[str]] = {name: set() for name in has}
    if len(rates) >= len(has):
        for teacher in rates:
            users = [name for name in has if teacher in has[name]]
            homes[min(users, key=lambda name: (teacher not in was[name], name))].add(teacher)
    else:
        for name, own in has.items():
            homes[name].add(min(own, key=lambda teacher: (teacher not in was[name], -rates[teacher], teacher)))
    return {name: Share(tuple(sorted(homes[name])), tuple(sorted(set(own) - homes[name]))) for name, own in has.items()}


def _with(student: StudentRecord, share: Share) -> StudentRecord:
    return structs.replace(student, teachers=share.teachers, shared=share.shared)


def _repair(rates: Mapping[str, float], crowd: Mapping[str, StudentRecord], needs: Needs) -> dict[str, Share]:
    """A better assignment than the present one, the same if that is good."""
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


def needs_of(rates: Mapping[str, float], students: Mapping[str, StudentRecord]) -> Needs:
    """All get what they ask for up to a common level, then the headroom, then the rest.

    A student that does not know what it needs asks for all that it could use.
    """
    fastest = sorted(rates.values(), reverse=True)
    most = {n: math.fsum(fastest[: s.max_teachers]) for n, s in students.items()}
    asked = {n: math.inf if s.demand is None else max(s.demand, 0.0) for n, s in students.items()}
    left = math.fsum(fastest)
    given = dict.fromkeys(students, 0.0)
    steps = []
    for wish in (asked, {n: demand * HEADROOM for n, demand in asked.items()}, most):
        more = _fill(left, {n: max(0.0, min(wish[n], most[n]) - given[n]) for n in students})
        given = {n: given[n] + more[n] for n in students}
        left = max(0.0, left - math.fsum(more.values()))
        steps.append(given)
    return Needs(fair=steps[2], need=steps[1])


def _fill(total: float, limits: Mapping[str, float]) -> dict[str, float]:
    """`total` in equal parts, none above its limit; what one leaves goes to the others."""
    parts = {}
    order = sorted(limits, key=lambda name: (limits[name], name))
    for place, name in enumerate(order):
        part = max(0.0, min(limits[name], total / (len(order) - place)))
        parts[name] = part
        total -= part
    return parts


# ---- homes -----------------------------------------------------------------------------------------------------------


def _homes_of_teachers(
    rates: Mapping[str, float], students: Mapping[str, StudentRecord], needs: Needs
) -> dict[str, set[str]]:
    room = {n: math.inf if s.max_teachers is None else max(1, s.max_teachers) for n, s in students.items()}
    bins = Bins(rates, needs.fair, needs.need, room, SLACK)
    claims: dict[str, list[str]] = {teacher: [] for teacher in rates}
    for name, student in students.items():
        for teacher in _present_homes(student, rates):
            claims[teacher].append(name)
    settle(bins, claims)
    return bins.held


def _homes_of_students(
    rates: Mapping[str, float], students: Mapping[str, StudentRecord], needs: Needs
) -> dict[str, set[str]]:
    used = math.fsum(needs.fair.values()) / math.fsum(rates.values())
    targets = {teacher: rate * used for teacher, rate in rates.items()}
    bins = Bins(needs.fair, targets, targets, dict.fromkeys(rates, math.inf), SLACK)
    settle(bins, {name: _present_homes(student, rates) for name, student in students.items()})
    homes: dict[str, set[str]] = {name: set() for name in students}
    for teacher, held in bins.held.items():
        for name in held:
            homes[name].add(teacher)
    return homes


def _present_homes(student: StudentRecord, rates: Mapping[str, float]) -> list[str]:
    return [t for t in dict.fromkeys(student.teachers) if t in rates and t not in student.shared]


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
        for teacher in sorted(set(students[name].shared) & spare.keys() - homes[name], key=lambda t: (-spare[t], t)):
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
