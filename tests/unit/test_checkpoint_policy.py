"""When to save: each rule alone, and that an epoch does not set the timer back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.policy import Every, Mark, due


@pytest.mark.parametrize(
    ("every", "last", "now", "expected"),
    [
        (None, Mark(0, 0, 0), Mark(0, 0, 0), "each call saves"),
        (Every(epochs=1), Mark(-1, 0, 0), Mark(-1, 9, 9), None),
        (Every(epochs=1), Mark(-1, 0, 0), Mark(0, 9, 9), "epoch 0 is complete"),
        (Every(epochs=3), Mark(-1, 0, 0), Mark(1, 9, 9), None),
        (Every(epochs=3), Mark(-1, 0, 0), Mark(2, 9, 9), "epoch 2 is complete"),
        (Every(epochs=3), Mark(2, 0, 0), Mark(3, 9, 9), None),
        (Every(epochs=3), Mark(3, 0, 0), Mark(6, 9, 9), "epoch 6 is complete"),
        (Every(steps=50), Mark(0, 0, 0), Mark(0, 49, 0), None),
        (Every(steps=50), Mark(0, 0, 0), Mark(0, 50, 0), "50 steps"),
        (Every(steps=50), Mark(0, 103, 0), Mark(0, 149, 0), None),
        (Every(steps=50), Mark(0, 103, 0), Mark(0, 151, 0), "50 steps"),
        (Every(seconds=10), Mark(0, 0, 5.0), Mark(3, 99, 14.9), None),
        (Every(seconds=10), Mark(0, 0, 5.0), Mark(0, 0, 15.0), "10 s since the last save"),
        (Every(steps=5, seconds=10), Mark(0, 0, 0), Mark(0, 4, 10.0), "10 s since the last save"),
    ],
)
def test_a_rule_says_when(every: Every | None, last: Mark, now: Mark, expected: str | None) -> None:
    assert due(every, last, now) == expected


@pytest.mark.parametrize("every", [None, Every(epochs=9)])
def test_what_was_asked_for_is_due(every: Every | None) -> None:
    assert due(every, Mark(0, 0, 0), Mark(0, 0, 0), "SIGTERM") == "SIGTERM"


@given(st.lists(st.tuples(st.floats(0.1, 3.0), st.booleans()), min_size=30, max_size=60))
def test_short_epochs_are_saved_by_time(steps: list[tuple[float, bool]]) -> None:
    """However the epochs end, no more than the interval and one step lies between two saves."""
    every = Every(seconds=10)
    last = now = Mark(-1, 0, 0.0)
    for seconds, ends_epoch in steps:
        now = Mark(now.epoch_no + ends_epoch, now.global_step + 1, now.time_s + seconds)
        if due(every, last, now):
            last = now
        assert now.time_s - last.time_s < 10


@pytest.mark.parametrize("options", [{}, {"epochs": 0}, {"steps": 0}, {"seconds": 0}, {"seconds": float("nan")}])
def test_rules_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options), "needs epochs")):
        Every(**options)
