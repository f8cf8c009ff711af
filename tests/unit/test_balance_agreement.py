"""Students that read the records at different moments end with the same assignment, and stay there."""

import random

import pytest
from fleet_flow import student, teacher

from distill.balance import Share, balance
from distill.records import StudentRecord, TeacherRecord


class Fleet:
    """Students with copies of the records that lag behind."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.teachers = {f"t{i}": self._teacher(f"t{i}") for i in range(self.chance.randint(0, 14))}
        self.students = {f"s{i}": self._student(f"s{i}") for i in range(self.chance.randint(1, 8))}
        self.seen: dict[str, tuple[dict[str, TeacherRecord], dict[str, StudentRecord]]] = {}
        self.writes = 0

    def _teacher(self, name: str) -> TeacherRecord:
        return teacher(name, self.chance.uniform(20, 300), draining=self.chance.random() < 0.1)

    def _student(self, name: str, has: Share | None = None) -> StudentRecord:
        demand = self.chance.choice([None, self.chance.uniform(10, 800)])
        return student(name, demand, self.chance.choice([None, None, 3]), has)

    def change(self) -> None:
        """A teacher or student comes, goes or changes."""
        name = f"{self.chance.choice('ts')}{self.chance.randint(0, 15)}"
        kind: dict[str, TeacherRecord] | dict[str, StudentRecord]
        kind = self.teachers if name[0] == "t" else self.students
        if name in kind and (len(kind) > 1 or kind is self.teachers):
            del kind[name]
        elif name[0] == "t":
            self.teachers[name] = self._teacher(name)
        else:
            self.students[name] = self._student(name)

    def read(self, who: str) -> None:
        """`who` sees some of the records as they are and keeps the rest as it saw them last."""
        old_teachers, old_students = self.seen.get(who, ({}, {}))
        teachers, students = dict(self.teachers), dict(self.students)
        for name, record in old_students.items():
            if name in students and self.chance.random() < 0.5 and name != who:
                students[name] = record
        if self.chance.random() < 0.3:
            teachers = old_teachers or teachers
        self.seen[who] = (teachers, students)

    def decide(self, who: str) -> bool:
        teachers, students = self.seen[who]
        share = balance(teachers.values(), {**students, who: self.students[who]}.values())[who]
        old = self.students[who]
        if (share.teachers, share.shared) == (old.teachers, old.shared):
            return False
        self.students[who] = student(who, old.demand, old.max_teachers, share)
        self.writes += 1
        return True


@pytest.mark.parametrize("seed", range(150))
def test_students_that_read_at_different_moments_agree_in_the_end(seed: int) -> None:
    fleet = Fleet(seed)
    for _ in range(60):
        if fleet.chance.random() < 0.2:
            fleet.change()
        who = fleet.chance.choice(sorted(fleet.students))
        fleet.read(who)
        fleet.decide(who)
    fleet.writes = 0
    turns = 0
    while True:  # nothing changes any more: one after the other sees all, in any order
        order = fleet.chance.sample(sorted(fleet.students), len(fleet.students))
        changed = False
        for who in order:
            fleet.seen[who] = (dict(fleet.teachers), dict(fleet.students))
            changed |= fleet.decide(who)
        turns += 1
        assert turns < 8, "they do not come to rest"
        if not changed:
            break
    answer = balance(fleet.teachers.values(), fleet.students.values())
    assert {n: (s.teachers, s.shared) for n, s in fleet.students.items()} == {
        n: (share.teachers, share.shared) for n, share in answer.items()
    }
