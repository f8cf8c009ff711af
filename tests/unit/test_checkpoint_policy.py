"""Retention: what is collected, and above all what never is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.layout import AttemptName
from checkpoints.policy import Condition, collectable

ATTEMPTS = st.builds(
    AttemptName,
    st.integers(0, 3),
    st.integers(0, 6),
    st.integers(1, 9),
    st.text("0123456789abcdef", min_size=12, max_size=12),
)
FOUND = st.dictionaries(ATTEMPTS, st.sampled_from(Condition), min_size=1, max_size=12)


def attempt(step: int, epoch: int = 0, token: str = "0" * 12) -> AttemptName:
    return AttemptName(epoch, step, step + 1, token)


def steps(found: dict[AttemptName, Condition], ours: AttemptName, keep: int) -> list[int]:
    return [item.attempt.global_step for item in collectable(found.items(), ours, keep)]


def test_the_newest_few_are_kept() -> None:
    found = {attempt(step): Condition.VALID for step in range(6)}
    assert steps(found, attempt(5), 3) == [0, 1, 2]
    assert steps(found, attempt(5), 6) == []


def test_damaged_ones_do_not_count_and_go_with_the_remains() -> None:
    valid, damaged, unfinished = Condition.VALID, Condition.DAMAGED, Condition.UNFINISHED
    found = {attempt(0): valid, attempt(1): damaged, attempt(2): valid, attempt(3): unfinished, attempt(4): valid}
    assert steps(found, attempt(4), 3) == [1, 3]


def test_a_save_that_may_be_in_progress_is_left_alone() -> None:
    found = {attempt(1): Condition.VALID, attempt(2): Condition.UNFINISHED}
    assert steps(found, attempt(1), 1) == []
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


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_none_is_refused(keep: int) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1"):
        collectable([], attempt(1), keep)


@given(FOUND, st.data(), st.integers(1, 5))
def test_the_invariants_of_retention(found: dict[AttemptName, Condition], data: st.DataObject, keep: int) -> None:
    ours = data.draw(st.sampled_from(sorted(found)))
    gone = {item.attempt for item in collectable(found.items(), ours, keep)}
    valid = sorted((a for a, condition in found.items() if condition is Condition.VALID), reverse=True)
    assert all(a < ours for a in gone)
    assert not gone & set(valid[:keep])
    assert not any(found[a] is Condition.UNKNOWN for a in gone)
    if gone:
        assert valid[0] not in gone
        assert valid[0] >= ours
