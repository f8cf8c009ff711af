"""How rarely students take up teachers that they did not have, against the fewest of all ways that are as good."""

import random
from collections.abc import Iterator, Sequence

import pytest
from fleet_flow import student, taken_up, teacher

from distill.balance import SLACK, Share, balance, known_rates, needs_of
from distill.records import StudentRecord, TeacherRecord

Case = tuple[list[TeacherRecord], list[StudentRecord]]


def fewest_taken_up(teachers: Sequence[TeacherRecord], students: Sequence[StudentRecord]) -> int:
    """By trying all: no teacher idle, no student without one, (1 - SLACK) of all needs at the same time."""
    rates = known_rates(teachers)
    needs = needs_of(rates, {s.student: s for s in students}).need
    names, least = list(rates), [needs[s.student] * (1 - SLACK) * (1 - 1e-9) for s in students]
    sets = range(1, 1 << len(names))
    able = [sum(rates[name] for bit, name in enumerate(names) if mask >> bit & 1) for mask in range(1 << len(names))]
    has = [sum(1 << bit for bit, name in enumerate(names) if name in s.teachers) for s in students]

    def good(way: list[int]) -> bool:
        """By the theorem of Gale and Hoffman: each crowd of students reaches teachers enough."""
        for crowd in range(1, 1 << len(way)):
            reached, wanted = 0, 0.0
            for index, mask in enumerate(way):
                if crowd >> index & 1:
                    reached, wanted = reached | mask, wanted + least[index]
            if able[reached] < wanted - 1e-9:
                return False
        return reached == len(able) - 1  # of the crowd of all

    best = len(names) * len(students) + 1

    def choose(way: list[int], cost: int) -> None:
        nonlocal best
        if len(way) == len(students):
            best = cost if good(way) else best
            return
        for mask in sets:
            more = cost + (mask & ~has[len(way)]).bit_count()
            if more < best:
                choose([*way, mask], more)

    choose([], 0)
    return best


def moves(students: Sequence[StudentRecord], shares: dict[str, Share]) -> int:
    """Teachers that students take up; to give one up costs nothing."""
    return sum(len(set(shares[s.student].teachers) - set(s.teachers)) for s in students)


def cases(event: str, count: int) -> Iterator[Case]:
    """Unequal teachers and students at rest, then something happens."""
    chance = random.Random(event)
    for _ in range(count):
        teachers = [teacher(f"t{n}", float(chance.randint(1, 20))) for n in range(chance.randint(2, 4))]
        students = [student(f"s{n}", chance.choice([None, chance.randint(1, 40)])) for n in range(chance.randint(1, 3))]
        students = taken_up(students, balance(teachers, students))
        if event == "a teacher leaves":
            teachers.pop(chance.randrange(len(teachers)))
        elif event == "a teacher comes":
            teachers.append(teacher("new", float(chance.randint(1, 20))))
        elif event == "a student leaves" and len(students) > 1:
            students.pop(chance.randrange(len(students)))
        elif event == "a student comes":
            students.append(student("new"))
        elif event == "a rate changes":
            teachers[0] = teacher("t0", float(chance.randint(1, 20)))
        yield teachers, students


@pytest.mark.parametrize(
    "event", ["a teacher leaves", "a teacher comes", "a student leaves", "a student comes", "a rate changes"]
)
def test_unequal_teachers_are_taken_up_as_rarely_as_can_be(event: str) -> None:
    for teachers, students in cases(event, 60):
        shares = balance(teachers, students)
        assert moves(students, shares) == fewest_taken_up(teachers, students), (teachers, students)


def test_of_equals_the_worst_off_gets_most() -> None:
    """One more is needed, and three would do."""
    teachers = [teacher("a", 10), teacher("b", 10), teacher("c", 10), teacher("d", 11)]
    students = [student("s0", has=Share(("a",))), student("s1", has=Share(("b", "c")))]
    assert balance(teachers, students)["s0"].teachers == ("a", "d")


def test_who_can_do_without_a_teacher_that_others_use_gives_it_up() -> None:
    """A student that took up a teacher of another's, which has not answered that yet."""
    teachers = [teacher(name, 10) for name in "abcd"]
    students = [student("s0", has=Share(("a", "b", "c", "d"))), student("s1", has=Share(("c", "d")))]
    shares = balance(teachers, students)
    assert (shares["s0"].teachers, shares["s1"].teachers) == (("a", "b"), ("c", "d"))


def test_larger_crowds_take_up_few_more() -> None:
    """Beyond distill.fewest a local search decides: what it costs above the number of those that must find a home."""
    chance = random.Random(7)
    more = []
    for _ in range(10):
        teachers = [teacher(f"t{n:02}", float(chance.randint(50, 400))) for n in range(40)]
        students = taken_up(crowd := [student(f"s{n}") for n in range(8)], balance(teachers, crowd))
        gone = teachers.pop(chance.randrange(len(teachers)))
        users = sum(gone.teacher in s.teachers for s in students)
        more.append(moves(students, balance(teachers, students)) - users)
    assert sum(more) / len(more) <= 4, more
