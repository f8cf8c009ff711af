"""The wanted number of workers: tables, bounds and the time at which it may change."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl_collective.coord.job_spec import ChangeRule, EpochStep, Schedule, TimeStep
from edl_collective.coord.records import JobSpec, Progress
from jobserver.schedule import change_due_at, check_schedule, wanted


def spec(**fields: Any) -> JobSpec:
    return JobSpec(**{"job": "j", "command": ("x",), "min_np": 1, "max_np": 4, **fields})


def progress(epoch: int) -> Progress:
    return Progress(generation=1, world_size=1, epoch=epoch, step=0)


def test_explicit_np_wins_over_the_schedule() -> None:
    schedule = Schedule(times=(TimeStep(0, 1),))
    assert wanted(spec(np=3, schedule=schedule), None, 0.0, 50.0).np == 3


def test_without_np_and_schedule_as_many_as_fit() -> None:
    assert wanted(spec(), None, None, 0.0).np == 4


@pytest.mark.parametrize(("epoch", "np"), [(None, 1), (0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (99, 4)])
def test_epoch_steps(epoch: int | None, np: int) -> None:
    schedule = Schedule(epochs=(EpochStep(0, 1), EpochStep(2, 2), EpochStep(4, 4)))
    found = wanted(spec(schedule=schedule), None if epoch is None else progress(epoch), 0.0, 1e6)
    assert (found.np, found.wake_at) == (np, None)


@pytest.mark.parametrize(
    ("now_s", "np", "wake_at"), [(100, 1, 160.0), (159.9, 1, 160.0), (160, 3, 200.0), (200, 2, None), (50, 1, 160.0)]
)
def test_time_steps_count_from_the_start(now_s: float, np: int, wake_at: float | None) -> None:
    schedule = Schedule(times=(TimeStep(0, 1), TimeStep(60, 3), TimeStep(100, 2)))
    found = wanted(spec(schedule=schedule), None, 100.0, now_s)
    assert (found.np, found.wake_at) == (np, wake_at)


def test_before_its_first_step_a_schedule_leaves_the_size_open() -> None:
    by_time = wanted(spec(schedule=Schedule(times=(TimeStep(60, 2),))), None, 100.0, 110.0)
    assert (by_time.np, by_time.wake_at) == (4, 160.0)
    assert wanted(spec(schedule=Schedule(epochs=(EpochStep(3, 2),))), progress(2), 0.0, 0.0).np == 4


def test_time_stands_still_before_the_start() -> None:
    schedule = Schedule(times=(TimeStep(0, 1), TimeStep(60, 3)))
    found = wanted(spec(schedule=schedule), None, None, 1e9)
    assert (found.np, found.wake_at) == (1, None)


@pytest.mark.parametrize(
    ("add", "remove", "series"),
    [
        (1, 1, [4, 3, 4, 3, 4, 3]),
        (1, 2, [4, 2, 3, 1, 2, 1, 2, 1]),
        (2, 1, [4, 3, 4, 3]),
        (0, 1, [4, 3, 3, 2, 2, 1, 1, 1]),
        (9, 9, [4, 1, 4, 1]),
    ],
)
def test_change_rule_removes_then_adds_within_the_bounds(add: int, remove: int, series: list[int]) -> None:
    job = spec(schedule=Schedule(change=ChangeRule(10.0, add, remove)))
    found = [wanted(job, None, 1000.0, 9e9, changes) for changes in range(len(series))]
    assert [w.np for w in found] == series
    assert {w.wake_at for w in found} == {None}


def test_a_change_is_due_an_interval_after_the_last_one_took_effect() -> None:
    rule = Schedule(change=ChangeRule(10.0, 1, 1))
    assert change_due_at(spec(schedule=rule), 1000.0) == 1010.0
    assert change_due_at(spec(schedule=rule), None) is None
    assert change_due_at(spec(schedule=rule, np=2), 1000.0) is None
    assert change_due_at(spec(), 1000.0) is None


@given(st.integers(0, 10**9), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3), st.integers(3, 9))
def test_change_rule_after_many_changes_is_what_step_by_step_gives(
    changes: int, add: int, remove: int, least: int, most: int
) -> None:
    job = spec(min_np=least, max_np=most, schedule=Schedule(change=ChangeRule(7.0, add, remove)))
    np = most
    for i in range(1, min(changes, 200 + changes % 2) + 1):  # by then the pattern repeats
        np = max(np - remove, least) if i % 2 else min(np + add, most)
    assert wanted(job, None, 0.0, 0.0, changes).np == np


@given(st.integers(1, 4), st.integers(0, 4), st.lists(st.integers(0, 20), max_size=4), st.integers(0, 9))
def test_bounds_always_hold(least: int, span: int, nps: list[int], epoch: int) -> None:
    schedule = Schedule(epochs=tuple(EpochStep(i, n) for i, n in enumerate(nps)))
    job = spec(min_np=least, max_np=least + span, schedule=schedule)
    assert least <= wanted(job, progress(epoch), 0.0, 5.0).np <= least + span


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Schedule(), "exactly one"),
        (Schedule(epochs=(EpochStep(0, 1),), times=(TimeStep(0, 1),)), "exactly one"),
        (Schedule(epochs=(EpochStep(-1, 1),)), "rise from 0"),
        (Schedule(epochs=(EpochStep(0, 1), EpochStep(0, 2))), "rise"),
        (Schedule(times=(TimeStep(0, 5),)), "np 5 must be between"),
        (Schedule(change=ChangeRule(0.0, 1, 1)), "every_s above 0"),
        (Schedule(change=ChangeRule(1.0, -1, 1)), "at least 0"),
    ],
)
def test_a_schedule_that_leaves_something_open_is_refused(schedule: Schedule, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_schedule(spec(schedule=schedule))
