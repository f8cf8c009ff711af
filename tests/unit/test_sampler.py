"""Permutations and the shares of the ranks: every index once, adjacent spans, bounds kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl_collective.sampler import (
    MAX_DATASET_SIZE,
    permutation,
    rank_span,
    rank_steps,
    step_count,
    steps_left,
)

sizes = st.integers(1, 300)
worlds = st.integers(1, 12)


def chunk_sizes(remaining: int, global_batch: int, world: int, min_local: int) -> tuple[int, ...]:
    """What each rank takes of the next global step."""
    count = step_count(remaining, global_batch, min_local)
    spans = (rank_span(count, rank, world, min_local) for rank in range(world))
    return tuple(end - begin for begin, end in spans)


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, int]:
    """(global_batch, min_local_batch)"""
    min_local = draw(st.integers(1, 5))
    return draw(st.integers(min_local, 64)), min_local


@given(size=st.integers(0, 500), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 1000))
def test_permutation_holds_each_index_once(size: int, seed: int, epoch: int) -> None:
    order = permutation(size, seed, epoch, shuffle=True)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(size))


def test_permutation_is_pinned_for_every_machine_and_numpy() -> None:
    # A change of these values breaks every checkpoint taken in mid-epoch: positions would mean other samples.
    assert permutation(10, seed=0, epoch=0, shuffle=True).tolist() == [0, 3, 2, 9, 7, 4, 1, 6, 5, 8]
    assert permutation(10, seed=7, epoch=3, shuffle=True).tolist() == [2, 3, 1, 6, 5, 9, 0, 8, 7, 4]
    big = permutation(100_000, seed=2**64 - 1, epoch=89, shuffle=True)
    assert int((big * np.arange(100_000)).sum()) == 250414229668984


def test_permutation_differs_by_seed_and_epoch_and_not_without_shuffle() -> None:
    orders = {tuple(permutation(50, seed, epoch, shuffle=True).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert permutation(50, 1, 2, shuffle=False).tolist() == list(range(50))


def test_permutation_spreads_each_index_evenly() -> None:
    places = np.array([permutation(20, 5, epoch, shuffle=True) for epoch in range(2000)])  # [epoch, place]
    counts = np.array([np.bincount(places[:, place], minlength=20) for place in range(20)])  # expected 100 each
    chi_square = float(((counts - 100.0) ** 2 / 100.0).sum())
    assert 250 < chi_square < 480  # 361 degrees of freedom: mean 361, deviation 27


@pytest.mark.parametrize(
    ("size", "seed", "epoch"), [(-1, 0, 0), (MAX_DATASET_SIZE + 1, 0, 0), (5, -1, 0), (5, 2**64, 0), (5, 0, -1)]
)
def test_permutation_refuses_bad_input(size: int, seed: int, epoch: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        permutation(size, seed, epoch, shuffle=True)


@given(remaining=st.integers(0, 400), batch=batches(), world=worlds)
def test_chunks_keep_their_bounds(remaining: int, batch: tuple[int, int], world: int) -> None:
    global_batch, min_local = batch
    chunks = chunk_sizes(remaining, global_batch, world, min_local)
    count = sum(chunks)
    left = remaining - count
    assert len(chunks) == world
    assert count > 0 or remaining == 0
    assert left == 0 or left >= min_local
    assert min(remaining, global_batch) <= count < global_batch + min_local
    used = [chunk for chunk in chunks if chunk]
    if remaining >= min_local:
        assert all(chunk >= min_local for chunk in used)
    if used:
        assert max(used) - min(used) <= 1
    if len(used) < world:
        assert (len(used) + 1) * min_local > count  # one more rank would starve


@given(count=st.integers(0, 200), world=worlds, min_local=st.integers(1, 5))
def test_spans_of_the_ranks_are_adjacent(count: int, world: int, min_local: int) -> None:
    reached = 0
    for rank in range(world):
        begin, end = rank_span(count, rank, world, min_local)
        assert begin == reached
        reached = end
    assert reached == count


@pytest.mark.parametrize(
    ("remaining", "global_batch", "world", "min_local", "chunks"),
    [
        (100, 8, 4, 1, (2, 2, 2, 2)),
        (3, 64, 8, 1, (1, 1, 1, 0, 0, 0, 0, 0)),
        (3, 64, 8, 2, (3, 0, 0, 0, 0, 0, 0, 0)),
        (7, 64, 4, 2, (3, 2, 2, 0)),
        (1, 64, 4, 2, (1, 0, 0, 0)),  # smaller than min_local_batch from the start
        (9, 8, 2, 2, (5, 4)),  # a tail of one joins
        (10, 8, 2, 2, (4, 4)),  # a tail of two stands alone
        (0, 8, 2, 2, (0, 0)),
    ],
)
def test_chunks_of_known_steps(
    remaining: int, global_batch: int, world: int, min_local: int, chunks: tuple[int, ...]
) -> None:
    assert chunk_sizes(remaining, global_batch, world, min_local) == chunks


@given(remaining=st.integers(0, 400), batch=batches())
def test_steps_left_counts_the_steps(remaining: int, batch: tuple[int, int]) -> None:
    steps = 0
    rest = remaining
    while rest:
        rest -= step_count(rest, *batch)
        steps += 1
    assert steps == steps_left(remaining, *batch)


def _global_steps(size: int, position: int, world: int, global_batch: int, min_local: int) -> list[list[int]]:
    order = permutation(size, 11, 4, shuffle=True)
    ranks = [list(rank_steps(order, position, rank, world, global_batch, min_local)) for rank in range(world)]
    return [[int(index) for step in steps for index in step.indices] for steps in zip(*ranks, strict=True)]


@given(size=sizes, batch=batches(), world=worlds, other=worlds)
def test_global_steps_are_the_same_at_every_world_size(
    size: int, batch: tuple[int, int], world: int, other: int
) -> None:
    assert _global_steps(size, 0, world, *batch) == _global_steps(size, 0, other, *batch)


@given(size=sizes, batch=batches(), world=worlds, data=st.data())
def test_ranks_agree_on_begin_and_count(size: int, batch: tuple[int, int], world: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, size))
    order = permutation(size, 3, 1, shuffle=True)
    for steps in zip(*(rank_steps(order, position, rank, world, *batch) for rank in range(world)), strict=True):
        assert {(step.begin, step.global_count) for step in steps} == {(position, sum(len(s.indices) for s in steps))}
        position += steps[0].global_count
    assert position == size


@given(size=sizes, per_worker=st.integers(2, 9), grow=st.booleans(), data=st.data())
def test_each_sample_once_over_resizes_and_rollbacks(
    size: int, per_worker: int, grow: bool, data: st.DataObject
) -> None:
    """Generations of arbitrary size; a failed step counts on some ranks only and is undone; checkpoints rewind."""
    order = permutation(size, 21, 0, shuffle=True)
    min_local = data.draw(st.integers(1, 2))
    boundaries = [0]  # positions of the surviving lineage
    consumed: list[list[int]] = []  # indices of each surviving step
    while boundaries[-1] < size:
        world = data.draw(worlds)
        global_batch = per_worker * world if grow else 4 * per_worker
        ranks = [rank_steps(order, boundaries[-1], rank, world, global_batch, min_local) for rank in range(world)]
        for _ in range(data.draw(st.integers(1, 4))):
            chunks = [next(steps, None) for steps in ranks]
            if chunks[0] is None:
                break
            assert all(chunk is not None for chunk in chunks)
            consumed.append([int(i) for chunk in chunks if chunk is not None for i in chunk.indices])
            boundaries.append(chunks[0].begin + chunks[0].global_count)
        lost = data.draw(st.integers(0, 2)) if len(boundaries) < 60 else 0
        for _ in range(min(lost, len(consumed))):
            consumed.pop()
            boundaries.pop()
    assert sorted(index for step in consumed for index in step) == list(range(size))
    assert all(consumed)


@pytest.mark.parametrize(
    ("position", "rank", "world", "global_batch", "min_local"),
    [(-1, 0, 1, 4, 1), (11, 0, 1, 4, 1), (0, 2, 2, 4, 1), (0, -1, 2, 4, 1), (0, 0, 0, 4, 1), (0, 0, 1, 1, 2)],
)
def test_rank_steps_refuses_bad_input_at_once(
    position: int, rank: int, world: int, global_batch: int, min_local: int
) -> None:
    order = permutation(10, 0, 0, shuffle=True)
    with pytest.raises(ValueError, match="must be"):
        rank_steps(order, position, rank, world, global_batch, min_local)
