"""bench.steps: from logs of completed steps to pauses and lost steps."""

from pathlib import Path

import pytest
from bench.step_files import StepFiles
from bench.steps import Step, format_step, longest_gap_s, parse_steps, pause_after, redone


def world(size: int, entered_s: float, first: int, times: list[float], pid: int = 100) -> list[Step]:
    """Steps of all ranks of a world, numbered from `first`, each rank a millisecond after the one before."""
    return [
        Step(at_s + rank / 1000, entered_s, first + n, rank, size, pid + rank)
        for n, at_s in enumerate(times)
        for rank in range(size)
    ]


OLD = world(2, 0.0, 1, [1.0, 1.1, 1.2, 1.3])


def test_a_line_comes_back_as_it_was_and_a_torn_one_does_not() -> None:
    log = format_step(1.5, 0.25, 7, 1, 2)
    assert parse_steps(log + log[:-3], pid=9) == [Step(1.5, 0.25, 7, 1, 2, 9)]


def test_a_line_of_something_else_is_an_error() -> None:
    with pytest.raises(ValueError, match="unpack"):
        parse_steps(b"1.0 2.0\n", pid=9)


def test_a_join_ends_when_the_joiner_has_completed_a_step() -> None:
    new = world(3, 1.35, 5, [1.5])
    late = [step for step in new if step.rank != 2] + [Step(1.9, 1.6, 5, 2, 3, 102)]
    pause = pause_after(OLD + late, 1.22, {3})
    assert pause is not None
    assert pause.pause_s == pytest.approx(1.9 - 1.301)
    assert pause.total_s == pytest.approx(1.9 - 1.22)
    assert (pause.steps_lost, pause.size) == (0, 3)


def test_a_pause_is_not_over_while_a_rank_is_missing() -> None:
    new = [step for step in world(3, 1.35, 5, [1.5, 1.6]) if step.rank != 1]
    assert pause_after(OLD + new, 1.22, {3}) is None


def test_a_world_of_another_size_does_not_count() -> None:
    between = world(1, 1.35, 5, [1.4, 1.5])
    assert pause_after(OLD + between, 1.22, {3}) is None
    pause = pause_after(OLD + between + world(3, 1.6, 7, [2.0]), 1.22, {3})
    assert pause is not None
    assert pause.pause_s == pytest.approx(2.002 - 1.301)


def test_a_replaced_worker_makes_a_world_of_the_same_size() -> None:
    pause = pause_after(OLD + world(2, 2.0, 3, [2.5], pid=200), 1.25, {1, 2})
    assert pause is not None
    assert (pause.size, pause.steps_lost) == (2, 2)


def test_steps_since_the_last_checkpoint_are_lost() -> None:
    assert [p.steps_lost for p in [pause_after(OLD + world(1, 2.0, 2, [2.5]), 1.25, {1})] if p] == [3]


def test_a_step_that_only_some_ranks_completed_is_not_lost_if_the_new_world_has_it() -> None:
    ahead = [*OLD, Step(1.4, 0.0, 5, 0, 2, 100)]
    assert [p.steps_lost for p in [pause_after(ahead + world(1, 2.0, 6, [2.5]), 1.35, {1})] if p] == [0]


def test_a_frozen_member_that_wakes_up_later_does_not_shorten_the_pause() -> None:
    woken = Step(9.0, 0.0, 5, 1, 2, 101)
    pause = pause_after([*OLD, *world(1, 2.0, 5, [2.5]), woken], 1.35, {1})
    assert pause is not None
    assert pause.pause_s == pytest.approx(2.5 - 1.301)


def test_an_event_before_any_step_is_an_error() -> None:
    with pytest.raises(ValueError, match="wait for one"):
        pause_after(world(1, 2.0, 5, [2.5]), 1.0, {1})


def test_the_longest_gap_touches_the_window_and_counts_an_open_end() -> None:
    steps = world(1, 0.0, 1, [1.0, 5.0, 5.1, 5.3, 5.4])
    assert longest_gap_s(steps, 5.0, 5.4) == pytest.approx(4.0)
    assert longest_gap_s(steps, 5.05, 5.4) == pytest.approx(0.2)
    assert longest_gap_s(steps, 5.35, 7.4) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no step"):
        longest_gap_s(steps, 0.0, 0.5)


def test_redone_counts_step_numbers_and_not_ranks() -> None:
    assert redone(OLD, 1.25) == 0
    assert redone(OLD + world(2, 2.0, 3, [2.5, 2.6, 2.7]), 1.35) == 2


def test_each_line_is_read_once_and_a_line_under_way_later(tmp_path: Path) -> None:
    files = StepFiles(tmp_path / "steps")
    assert files.read() == []
    (tmp_path / "steps").mkdir()
    log = tmp_path / "steps" / "42.steps"
    log.write_bytes(format_step(1.0, 0.0, 1, 0, 1) + b"2.0 0")
    assert [step.number for step in files.read()] == [1]
    with log.open("ab") as file:
        file.write(b".0 2 0 1\n")
    assert files.read() == [Step(1.0, 0.0, 1, 0, 1, 42), Step(2.0, 0.0, 2, 0, 1, 42)]
