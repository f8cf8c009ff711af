"""A student follows the teachers of its service, says which it uses, and goes on while ZooKeeper is away."""

from typing import Any

import pytest
from fleet_flow import teacher

from distill.discovery import FIGURES_EVERY_S, SETTLE_S, Discovery
from distill.errors import ConfigError
from distill.io_settings import DynamicTeachers
from distill.records import StudentRecord, TeacherRecord, settled
from distill.source import StudentReport
from edl_collective.coord.clock import ManualClock
from edl_collective.coord.errors import Disconnected
from edl_collective.coord.memory_store import MemoryStore, MemoryTree
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import decode, encode
from edl_collective.coord.store import Store

PATHS = Paths()
SERVICE = "resnet"


def student(name: str, most: int | None = None) -> DynamicTeachers:
    return DynamicTeachers("zk:2181", PATHS.root, SERVICE, name, most)


class Fleet:
    """A service in memory, with students that are stepped by hand."""

    def __init__(self) -> None:
        self.tree = MemoryTree()
        self.admin = MemoryStore(self.tree)
        self.clock = ManualClock(100.0)
        self.stores: dict[str, MemoryStore] = {}
        self.woken: list[str] = []
        self.students: dict[str, Discovery] = {}

    def serve(self, *records: TeacherRecord) -> None:
        for record in records:
            path = PATHS.teacher(SERVICE, record.teacher)
            found = self.admin.get(path)
            self.admin.set(path, encode(record), found.version if found else None)

    def leave(self, name: str) -> None:
        self.admin.delete(PATHS.teacher(SERVICE, name))

    def join(self, name: str, most: int | None = None) -> Discovery:
        store = self.stores[name] = MemoryStore(self.tree)

        def opened() -> Store:
            return store

        self.students[name] = Discovery(
            opened, student(name, most), wake=lambda: self.woken.append(name), clock=self.clock
        )
        return self.students[name]

    def turn(self, seconds: float = SETTLE_S) -> None:
        """Everybody looks, time goes by, everybody looks again."""
        for student in self.students.values():
            student.step()
        self.clock.advance(seconds)
        for student in self.students.values():
            student.step()

    def record(self, name: str) -> StudentRecord | None:
        found = self.admin.get(PATHS.student(SERVICE, name))
        return None if found is None else decode(found.data, StudentRecord)

    def has(self, name: str) -> list[str]:
        return [t.teacher for t in self.students[name].teachers()]


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def report(demand: float | None = 100.0, starved: float = 0.0, **more: Any) -> StudentReport:
    return StudentReport(rate=90.0, demand=demand, starved=starved, starved_s=1.5, **more)


def test_a_student_takes_what_is_there_at_once_and_says_so(fleet: Fleet) -> None:
    fleet.serve(teacher("a"), teacher("b"))
    fleet.join("s")
    fleet.students["s"].step()
    assert fleet.has("s") == ["a", "b"]
    assert fleet.woken == ["s"]
    written = fleet.record("s")
    assert written is not None
    assert written.teachers == ("a", "b")


def test_students_part_the_teachers_and_take_over_from_one_that_left(fleet: Fleet) -> None:
    fleet.serve(*(teacher(f"t{i}") for i in range(6)))
    for name in ("x", "y", "z"):
        fleet.join(name)
    for _ in range(4):
        fleet.turn(1.0)
    assert sorted(fleet.has("x") + fleet.has("y") + fleet.has("z")) == [f"t{i}" for i in range(6)]
    assert {len(fleet.has(name)) for name in "xyz"} == {2}
    fleet.students.pop("z").close()
    assert fleet.record("z") is None
    for _ in range(3):
        fleet.turn(1.0)
    assert sorted(fleet.has("x") + fleet.has("y")) == [f"t{i}" for i in range(6)]


def test_a_teacher_that_left_or_drains_is_given_up_at_once(fleet: Fleet) -> None:
    fleet.serve(teacher("a"), teacher("b"), teacher("c"))
    fleet.join("s")
    fleet.turn()
    fleet.leave("a")
    fleet.serve(teacher("b", draining=True))
    fleet.students["s"].step()
    assert fleet.has("s") == ["c"]


def test_a_new_teacher_is_taken_when_the_listing_is_quiet(fleet: Fleet) -> None:
    fleet.serve(teacher("a"))
    fleet.join("s")
    fleet.turn()
    fleet.serve(teacher("b"))
    wait_s = fleet.students["s"].step()
    assert fleet.has("s") == ["a"]
    assert wait_s == pytest.approx(SETTLE_S)
    fleet.clock.advance(SETTLE_S)
    fleet.students["s"].step()
    assert fleet.has("s") == ["a", "b"]


def test_a_listing_that_is_never_quiet_is_answered_all_the_same(fleet: Fleet) -> None:
    fleet.serve(teacher("a"))
    fleet.join("s")
    fleet.turn()
    for i in range(12):
        fleet.serve(teacher(f"b{i}"))
        fleet.students["s"].step()
        fleet.clock.advance(SETTLE_S / 2)
    assert len(fleet.has("s")) > 5


def test_training_goes_on_while_zookeeper_is_away(fleet: Fleet) -> None:
    fleet.serve(teacher("a"))
    fleet.join("s")
    fleet.turn()
    fleet.stores["s"].suspend()
    fleet.leave("a")
    fleet.turn()
    assert fleet.has("s") == ["a"]
    assert "interrupted" in fleet.students["s"].why_none()
    fleet.serve(teacher("a"))
    fleet.stores["s"].expire()
    assert fleet.record("s") is None
    fleet.stores["s"].resume()
    fleet.turn()
    assert fleet.has("s") == ["a"]
    assert fleet.record("s") is not None


def test_a_student_waits_for_a_zookeeper_that_is_not_there_yet(fleet: Fleet) -> None:
    fleet.serve(teacher("a"))
    tries = []

    def open_store() -> Store:
        tries.append(1)
        if len(tries) < 3:
            raise Disconnected("zk:2181", "no answer")
        return MemoryStore(fleet.tree)

    found = Discovery(open_store, student("s"), wake=lambda: None, clock=fleet.clock)
    assert found.step() == 1.0
    assert "zk:2181" in found.why_none()
    found.step()
    found.step()
    assert [t.teacher for t in found.teachers()] == ["a"]
    found.close()


def test_the_record_is_written_once_a_second_at_most(fleet: Fleet) -> None:
    fleet.serve(teacher("a"))
    fleet.join("s")
    fleet.turn()
    path = PATHS.student(SERVICE, "s")

    def version() -> int:
        found = fleet.admin.get(path)
        assert found is not None
        return found.version

    before = version()
    for i in range(30):  # 3 s in which the demand doubles ever again
        fleet.students["s"].report(report(demand=2.0**i, starved=0.5))
        fleet.students["s"].step()
        fleet.clock.advance(0.1)
    assert 2 <= version() - before <= 3
    fleet.clock.advance(1.0)
    fleet.students["s"].step()
    now = version()
    fleet.students["s"].report(report(demand=2.0**29, starved=0.52))
    fleet.clock.advance(2.0)
    assert fleet.students["s"].step() == pytest.approx(FIGURES_EVERY_S - 2.0)
    assert version() == now
    fleet.clock.advance(FIGURES_EVERY_S)
    fleet.students["s"].step()
    written = fleet.record("s")
    assert written is not None
    assert (written.starved, written.starved_s) == (0.52, 1.5)


def test_a_process_that_takes_the_place_of_a_dead_one_replaces_its_record(fleet: Fleet) -> None:
    fleet.serve(teacher("a"))
    fleet.join("s")
    fleet.turn()
    dead = fleet.stores["s"]
    fleet.join("s")
    fleet.turn()
    dead.expire()
    fleet.turn()
    assert fleet.record("s") is not None


def test_why_there_are_none(fleet: Fleet) -> None:
    student = fleet.join("s")
    student.step()
    assert "service resnet has no teachers; start one: edl teacher serve" in student.why_none()
    fleet.serve(teacher("a", draining=True))
    student.step()
    assert "all 1 teachers of service resnet are draining" in student.why_none()
    fleet.admin.set(PATHS.teacher(SERVICE, "bad"), b"{", None)
    fleet.leave("a")
    student.step()
    assert "1 records cannot be read" in student.why_none()
    assert fleet.woken


def test_a_record_with_an_url_that_cannot_be_is_left_out(fleet: Fleet) -> None:
    fleet.serve(TeacherRecord(teacher="a", url="ftp://x", model="m"), teacher("b"))
    fleet.join("s").step()
    assert fleet.has("s") == ["b"]


@pytest.mark.parametrize(("student", "most"), [("a/b", None), ("s", 0)])
def test_names_and_limits_that_cannot_be(fleet: Fleet, student: str, most: int | None) -> None:
    with pytest.raises(ConfigError):
        fleet.join(student, most)


def test_a_demand_that_is_only_measured_again_moves_nobody(fleet: Fleet) -> None:
    fleet.serve(teacher("a"))
    fleet.join("s")
    for demand in (100.0, 104.0, 95.0, 109.0):
        fleet.students["s"].report(report(demand=demand))
        fleet.turn(FIGURES_EVERY_S + 1)
        written = fleet.record("s")
        assert written is not None
        assert written.demand == 100.0
    fleet.students["s"].report(report(demand=120.0))
    fleet.turn(2.0)
    written = fleet.record("s")
    assert written is not None
    assert written.demand == 120.0


@pytest.mark.parametrize(
    ("new", "written", "said"),
    [(None, 5.0, None), (5.0, None, 5.0), (109.0, 100.0, 100.0), (112.0, 100.0, 112.0), (80.0, 100.0, 80.0)],
)
def test_figures_stay_as_they_were_written_until_they_are_a_tenth_off(
    new: float | None, written: float | None, said: float | None
) -> None:
    assert settled(new, written) == said
