"""Starvation is a number: of a student, per second and per step, and of a job in its progress."""

from dataclasses import dataclass, field

import pytest

from distill.starvation import Starvation
from edl_collective.teacher_waits import TeacherWaits


def test_a_student_that_never_waits_shows_its_demand() -> None:
    starvation = Starvation(100.0)
    report = starvation.report((320.0, 10.0, 0.0, 0.0), 101.0, None)
    assert (report.rate, report.demand, report.starved, report.wait_s_per_step) == (320.0, 320.0, 0.0, 0.0)


def test_waiting_is_told_per_second_and_per_step() -> None:
    starvation = Starvation(100.0)
    report = starvation.report((160.0, 5.0, 0.5, 0.0), 101.0, None)
    assert (report.rate, report.demand, report.starved, report.starved_s) == (160.0, 320.0, 0.5, 0.5)
    assert report.wait_s_per_step == pytest.approx(0.1)


def test_a_wait_under_way_counts_while_it_lasts_and_once() -> None:
    starvation = Starvation(100.0)
    starvation.report((160.0, 5.0, 0.0, 0.0), 101.0, None)
    for second in range(2, 5):
        report = starvation.report((160.0, 5.0, 0.0, 101.5), 100.0 + second, "no teachers")
        assert report.wait_s_per_step == report.starved_s == second - 1.5
    assert (report.rate, report.demand, report.starved, report.waiting_for) == (0.0, 160.0, 1.0, "no teachers")
    report = starvation.report((480.0, 15.0, 2.75, 0.0), 105.0, None)
    assert report.wait_s_per_step == pytest.approx(0.025), "a quarter of a second more, over ten steps"
    assert report.starved == pytest.approx(0.25)


def test_who_trains_nothing_keeps_what_was_known() -> None:
    starvation = Starvation(100.0)
    starvation.report((160.0, 5.0, 0.5, 0.0), 101.0, None)
    report = starvation.report((160.0, 5.0, 0.5, 0.0), 102.0, None)
    assert (report.demand, report.starved, report.wait_s_per_step) == (320.0, 0.0, 0.1)


@dataclass
class Stats:
    waited_s: float = 0.0
    batches: int = 0


@dataclass
class Loader:
    stats: Stats = field(default_factory=Stats)


def test_a_process_counts_the_waits_of_its_epoch_alone() -> None:
    loader = Loader(Stats(9.0, 3))
    waits = TeacherWaits()
    waits.begin_epoch()
    waits.follow(loader)
    assert waits.per_step_s() is None
    loader.stats = Stats(10.0, 7)
    waits.follow(loader)
    assert (waits.counts(), waits.per_step_s()) == ((1.0, 4), 0.25)
    waits.begin_epoch()
    assert waits.counts() == (0.0, 0)
    loader.stats = Stats(10.5, 8)
    assert waits.per_step_s() == 0.5


def test_a_loader_without_teachers_has_no_waits() -> None:
    waits = TeacherWaits()
    waits.follow([1, 2])
    assert (waits.counts(), waits.per_step_s()) == ((0.0, 0), None)
