"""The ledger of consumed positions: what it merges, what it finds missing or doubled, and that it stays small."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl_collective.errors import LedgerError
from edl_collective.ledger import Interval, Ledger

rows = st.builds(
    lambda epoch, generation, begin, length, world: (epoch, generation, begin, begin + length, world),
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(0, 30),
    st.integers(1, 10),
    st.integers(1, 4),
)


def _ledger(*entries: tuple[int, int, int, int, int]) -> Ledger:
    ledger = Ledger()
    for entry in entries:
        ledger.append(*entry)
    return ledger


def _covered(ledger: Ledger, epoch: int) -> list[int]:
    return [position for row in ledger.rows if row.epoch == epoch for position in range(row.begin, row.end)]


def _positions(spans: list[tuple[int, int]]) -> list[int]:
    return [position for begin, end in spans for position in range(begin, end)]


def test_adjacent_intervals_of_a_generation_merge() -> None:
    ledger = _ledger((0, 1, 0, 8, 2), (0, 1, 8, 16, 2), (0, 2, 16, 24, 4), (0, 2, 24, 30, 4))
    assert ledger.rows == (Interval(0, 1, 1, 0, 16, 2), Interval(0, 2, 2, 16, 30, 4))


def test_intervals_apart_or_of_another_epoch_stay_apart() -> None:
    assert len(_ledger((0, 1, 0, 8, 2), (0, 1, 9, 16, 2)).rows) == 2
    assert len(_ledger((0, 1, 0, 8, 2), (1, 1, 8, 16, 2)).rows) == 2


@given(st.lists(rows, max_size=12))
def test_ledger_survives_json(entries: list[tuple[int, int, int, int, int]]) -> None:
    ledger = _ledger(*entries)
    assert Ledger.from_json(ledger.to_json()) == ledger


@given(st.lists(rows, max_size=12), st.integers(0, 2), st.integers(0, 45))
def test_missing_and_doubled_agree_with_counting(
    entries: list[tuple[int, int, int, int, int]], epoch: int, size: int
) -> None:
    ledger = _ledger(*entries)
    covered = _covered(ledger, epoch)
    assert _positions(ledger.missing(epoch, size)) == [p for p in range(size) if p not in covered]
    assert _positions(ledger.doubled(epoch)) == sorted({p for p in covered if covered.count(p) > 1})


def test_completed_epoch_becomes_one_row() -> None:
    ledger = _ledger((0, 1, 0, 10, 2), (0, 2, 10, 20, 4), (0, 4, 20, 25, 1), (1, 4, 0, 5, 1))
    ledger.complete(0, 25)
    ledger.complete(0, 25)
    assert ledger.rows == (Interval(0, 1, 4, 0, 25, 1), Interval(1, 4, 4, 0, 5, 1))


def test_ledger_stays_small_over_many_epochs() -> None:
    ledger = Ledger()
    for epoch in range(90):
        for step in range(100):
            ledger.append(epoch, epoch * 4 + step // 25, step * 256, step * 256 + 256, 1 + step // 25)
        ledger.complete(epoch, 25_600)
    assert len(ledger.rows) == 90
    assert len(ledger.to_json()) < 4096


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([(0, 1, 0, 4, 1)], "missing"),
        ([], "missing"),
        ([(0, 1, 0, 5, 1), (0, 2, 4, 10, 1)], "doubled"),
        ([(0, 1, 0, 11, 1)], "beyond the end"),
    ],
)
def test_epoch_that_lost_or_doubled_is_not_completed(
    entries: list[tuple[int, int, int, int, int]], problem: str
) -> None:
    ledger = _ledger(*entries)
    with pytest.raises(LedgerError, match=problem):
        ledger.complete(0, 10)


def test_newest_generation_outlives_completion() -> None:
    assert Ledger().newest_generation == 0
    ledger = _ledger((0, 1, 0, 10, 2), (0, 4, 10, 20, 4))
    assert ledger.newest_generation == 4
    ledger.complete(0, 20)
    assert ledger.newest_generation == 4


@pytest.mark.parametrize(
    "entry", [(0, 0, 5, 5, 1), (0, 0, -1, 5, 1), (-1, 0, 0, 5, 1), (0, -1, 0, 5, 1), (0, 0, 0, 5, 0)]
)
def test_impossible_intervals_are_refused(entry: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"begin|epoch"):
        _ledger(entry)


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 2, "rows": []}',
        '{"version": 1, "rows": [], "more": 0}',
        '{"version": 1, "rows": {}}',
        json.dumps({"version": 1, "rows": [[0, 0, 0, 0, 5]]}),
        json.dumps({"version": 1, "rows": [[0, 0, 0, 0, 5, True]]}),
        json.dumps({"version": 1, "rows": [[0, 0, 0, 5, 5, 1]]}),
        json.dumps({"version": 1, "rows": [[0, 2, 1, 0, 5, 1]]}),
    ],
)
def test_text_that_is_no_ledger_is_refused(document: str) -> None:
    with pytest.raises(LedgerError, match="ledger"):
        Ledger.from_json(document)
