"""Retention: what is collected, and above all what never is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.layout import AttemptName
from checkpoints.retention import Condition, Found, Keep, collectable, metric_of
from checkpoints.train_status import TrainStatus

ATTEMPTS = st.builds(
    AttemptName,
    st.integers(0, 3),
    st.integers(0, 6),
    st.integers(1, 9),
    st.text("0123456789abcdef", min_size=12, max_size=12),
)
METRICS: st.SearchStrategy[Any] = st.none() | st.integers(0, 5) | st.floats(0, 5) | st.just("high") | st.booleans()
STATUSES = st.builds(
    lambda epoch, position, metric: TrainStatus(epoch_no=epoch, position=position, user={"accuracy": metric}),
    st.integers(-1, 5),
    st.sampled_from([0, 0, 7]),
    METRICS,
)


def _found(attempt: AttemptName, condition: Condition, status: TrainStatus, pinned: bool) -> Found:
    readable = condition in (Condition.VALID, Condition.DAMAGED)
    return Found(attempt, condition, status if readable else None, pinned)


FOUND = st.lists(
    st.builds(_found, ATTEMPTS, st.sampled_from(Condition), STATUSES, st.sampled_from([False, False, True])),
    min_size=1,
    max_size=12,
    unique_by=lambda item: item.attempt,
)
KEEPS = st.builds(
    lambda last, every, best, mode: Keep(last, every, best, "accuracy" if best else "", mode),
    st.none() | st.integers(1, 5),
    st.none() | st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from(["max", "min"]),
)


def attempt(step: int, epoch: int = 0, token: str = "0" * 12) -> AttemptName:
    return AttemptName(epoch, step, step + 1, token)


def ends(*metrics: Any) -> list[Found]:
    """A checkpoint at the end of each epoch, with this accuracy."""
    return [
        Found(attempt(epoch), Condition.VALID, TrainStatus(epoch_no=epoch, global_step=epoch, user={"accuracy": value}))
        for epoch, value in enumerate(metrics)
    ]


def steps(found: dict[AttemptName, Condition] | list[Found], ours: AttemptName | None, keep: int | Keep) -> list[int]:
    rows = found if isinstance(found, list) else [Found(a, condition) for a, condition in found.items()]
    rules = Keep(keep) if isinstance(keep, int) else keep
    return [item.attempt.global_step for item in collectable(rows, rules, ours)]


def test_the_newest_few_are_kept() -> None:
    found = {attempt(step): Condition.VALID for step in range(6)}
    assert steps(found, attempt(5), 3) == [0, 1, 2]
    assert steps(found, attempt(5), 6) == []
    assert steps(found, None, 3) == [0, 1, 2]


def test_damaged_ones_do_not_count_and_go_with_the_remains() -> None:
    valid, damaged, unfinished = Condition.VALID, Condition.DAMAGED, Condition.UNFINISHED
    found = {attempt(0): valid, attempt(1): damaged, attempt(2): valid, attempt(3): unfinished, attempt(4): valid}
    assert steps(found, attempt(4), 3) == [1, 3]


def test_every_few_epochs_one_is_kept_for_ever() -> None:
    assert steps(ends(*range(10)), attempt(9), Keep(1, every_epochs=3)) == [0, 1, 3, 4, 6, 7]


def test_only_the_end_of_an_epoch_counts_for_that_and_only_its_newest() -> None:
    again, middle = attempt(2, token="f" * 12), attempt(3)
    found = [
        Found(attempt(2), Condition.VALID, TrainStatus(epoch_no=1)),
        Found(again, Condition.VALID, TrainStatus(epoch_no=1)),
        Found(middle, Condition.VALID, TrainStatus(epoch_no=1, position=5)),
        Found(attempt(9), Condition.VALID, TrainStatus(epoch_no=2)),
    ]
    gone = [item.attempt for item in collectable(found, Keep(1, every_epochs=2), attempt(9))]
    assert gone == [attempt(2), middle]


def test_the_best_are_kept_and_what_has_no_number_is_not_among_them() -> None:
    found = ends(0.5, 0.9, None, "0.99", 0.9, 0.1, 0.2)
    assert steps(found, attempt(6), Keep(1, best=1, metric="accuracy")) == [0, 1, 2, 3, 5]
    assert steps(found, attempt(6), Keep(1, best=2, metric="accuracy", mode="min")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [None, "0.5", True, [1], {}])
def test_what_cannot_be_compared_is_no_metric(value: Any) -> None:
    assert metric_of(TrainStatus(user={"accuracy": value}), Keep(1, best=1, metric="accuracy")) is None


def test_a_pin_holds_whatever_the_rules_say_and_does_not_count() -> None:
    found = ends(*range(5))
    found[1] = replace(found[1], pinned=True)
    found[2] = replace(found[2], pinned=True, condition=Condition.DAMAGED)
    assert steps(found, attempt(4), 2) == [0]


def test_a_save_that_may_be_in_progress_is_left_alone() -> None:
    found = {attempt(1): Condition.VALID, attempt(2): Condition.UNFINISHED}
    assert steps(found, attempt(1), 1) == []
    assert steps(found, None, 1) == []
    second_saver = attempt(1, token="f" * 12)
    first_saver = attempt(1, token="0" * 12)
    assert steps({second_saver: Condition.VALID, first_saver: Condition.UNFINISHED}, second_saver, 1) == []


def test_a_zombie_of_an_older_driver_collects_nothing_newer() -> None:
    newer = [attempt(step, epoch=2) for step in (1, 2, 3)]
    zombie = attempt(900, epoch=1)
    found = dict.fromkeys([*newer, zombie], Condition.VALID)
    assert steps(found, zombie, 1) == []
    assert steps(found, newer[-1], 1) == [900, 1, 2]


def test_what_a_later_version_wrote_is_never_collected() -> None:
    assert steps({attempt(1): Condition.UNKNOWN, attempt(2): Condition.VALID}, attempt(2), 1) == []


def test_nothing_is_collected_when_our_own_is_not_seen_as_valid() -> None:
    found = {attempt(1): Condition.VALID, attempt(2): Condition.VALID, attempt(3): Condition.DAMAGED}
    assert steps(found, attempt(3), 1) == []
    assert steps(found, attempt(4), 1) == []
    assert steps({attempt(1): Condition.DAMAGED, attempt(2): Condition.UNFINISHED}, None, 1) == []


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"last": 0}, "keep must be at least 1"),
        ({"last": -1}, "keep must be at least 1"),
        ({"every_epochs": 0}, "every_epochs must be at least 1"),
        ({"best": 1}, "give both or neither"),
        ({"metric": "loss"}, "give both or neither"),
        ({"best": -1}, "give both or neither"),
        ({"mode": "best"}, "'max' or 'min'"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Keep(**rules)


@given(FOUND, st.data(), KEEPS)
def test_the_invariants_of_retention(found: list[Found], data: st.DataObject, keep: Keep) -> None:
    ours = data.draw(st.none() | st.sampled_from([item.attempt for item in found]))
    gone = {item.attempt for item in collectable(found, keep, ours)}
    known = {item.attempt: item for item in found}
    valid = sorted((a for a, item in known.items() if item.condition is Condition.VALID), reverse=True)
    limit = ours or (valid[0] if valid else None)
    assert all(limit is not None and a < limit for a in gone)
    assert not gone & set(valid[: keep.last])
    assert not any(known[a].pinned or known[a].condition is Condition.UNKNOWN for a in gone)
    if gone:
        assert valid[0] not in gone
        assert limit in valid
    if keep.last is None:
        assert not gone & set(valid)


@given(FOUND, KEEPS)
def test_collecting_is_finished_after_once(found: list[Found], keep: Keep) -> None:
    gone = {item.attempt for item in collectable(found, keep)}
    assert collectable([item for item in found if item.attempt not in gone], keep) == []


@given(FOUND, KEEPS, st.data())
def test_a_collector_that_died_half_way_leads_to_the_same_end(
    found: list[Found], keep: Keep, data: st.DataObject
) -> None:
    plan = [item.attempt for item in collectable(found, keep)]
    died_at = data.draw(st.integers(0, len(plan)))
    left = [item for item in found if item.attempt not in plan[:died_at]]
    # The one it died at has lost its manifest and is still there.
    broken = set(plan[died_at : died_at + 1])
    left = [replace(i, condition=Condition.UNFINISHED, status=None) if i.attempt in broken else i for i in left]
    again = {item.attempt for item in collectable(left, keep)}
    top = max((item.attempt for item in left if item.condition is Condition.VALID), default=None)
    # Remains at the very step of the newest valid one may be a second saver at work: they wait for the next save.
    waiting = {
        a for a in broken if top is not None and (a.driver_epoch, a.global_step) == (top.driver_epoch, top.global_step)
    }
    assert again == set(plan[died_at:]) - waiting
