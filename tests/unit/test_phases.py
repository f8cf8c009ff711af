"""The phases of a pause add up to it."""

import itertools

import pytest

from edl_collective.phases import PHASES, Phases


def ended(*phases: str) -> Phases:
    """The phases end at 1, 2, 3 ... seconds."""
    made = Phases(map(float, itertools.count(1)).__next__)
    for phase in phases:
        made.end(phase)
    return made


def test_each_phase_begins_where_the_one_before_ended() -> None:
    spans = ended(*PHASES).spans(0.5)
    assert list(spans) == list(PHASES)
    assert list(spans.values()) == [0.5, 1, 1, 1, 1, 1]
    assert sum(spans.values()) == len(PHASES) - 0.5


def test_a_phase_that_ended_before_the_last_step_is_of_an_earlier_pause() -> None:
    assert ended("shutdown", "gate", "init").spans(2.5) == {"init": 0.5}


def test_what_was_tried_twice_counts_once_and_in_full() -> None:
    """A world that failed before its first step: its phases are part of the next one's."""
    spans = ended("shutdown", "gate", "init", "shutdown", "gate", "init", "sync", "batch", "step").spans(0)
    assert sum(spans.values()) == 9
    assert spans["shutdown"] == 4


def test_the_first_world_has_no_pause() -> None:
    assert ended("gate", "init", "sync").spans(None) == {}


def test_unknown_phases_are_refused() -> None:
    with pytest.raises(AssertionError):
        Phases(lambda: 0.0).end("lunch")
