"""Which samples each rank takes in each global step, at any world size. [pure]

An epoch is one permutation of the dataset, the same on every machine. The progress of an epoch is one number, the
position: how many samples of the permutation all ranks together have consumed. A global step takes the next samples
from the position on and cuts them into one chunk per rank, in rank order. After a resize the rest is cut anew.

Invariant: whatever the world sizes, the global steps cover the permutation from the position to its end, each sample
once, and no global step is empty. With a constant global batch the global steps themselves do not depend on the world
size. A chunk is empty or has at least `min_local_batch` samples; the one exception is a rest that is smaller than
`min_local_batch` from the start (a tiny dataset), which goes to rank 0 as one undersized chunk.

Versions: the permutation is built from the raw words of numpy's Philox bit generator, for which numpy guarantees that a
key always gives the same integers, and from stable sorts, which have one result whatever the algorithm. It uses no
method of numpy's Generator (`permutation`, `shuffle`): those may change between numpy versions. A test pins its values.

This module keeps no progress of its own (batches.py does) and does not know what a sample is.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

#: as many as there are sort keys, see permutation()
MAX_DATASET_SIZE = 1 << 32
_WORD = 1 << 64


class RankStep(NamedTuple):
    """One global step as one rank sees it."""

    #: position at which the global step begins
    begin: int
    #: samples of the global step over all ranks, never 0
    global_count: int
    #: dataset indices of this rank's chunk, int64 [local_count]; empty when the rank only takes part in the reduction
    indices: Indices


def permutation(size: int, seed: int, epoch: int, shuffle: bool) -> Indices:
    """The order in which an epoch visits the dataset.

    Each index gets a random key of 32 bits and the keys are sorted, in two passes of 16 bits (numpy's stable sort of
    uint16 is a radix sort: half the time of one sort of whole words). Indices with equal keys, 190 pairs in an epoch
    of 1.28 million samples, keep their order.

    Arguments: size, samples in the dataset, 0 to 2**32; seed and epoch, each 0 to 2**64 - 1; shuffle, False for the
    order of the dataset.
    Returns int64 [size], each of 0 .. size - 1 once.
    Raises ValueError when an argument is out of range.
    """
    _check_range("size", size, 0, MAX_DATASET_SIZE)
    _check_range("seed", seed, 0, _WORD - 1)
    _check_range("epoch", epoch, 0, _WORD - 1)
    if not shuffle or size == 0:
        return np.arange(size, dtype=np.int64)
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(size)  # uint64 [size]
    order = np.argsort(words.astype(np.uint16), kind="stable")
    high = (words >> np.uint64(16)).astype(np.uint16)
    return order[np.argsort(high[order], kind="stable")].astype(np.int64, copy=False)


def step_count(remaining: int, global_batch: int, min_local_batch: int = 1) -> int:
    """Samples in the next global step: the global batch, or what remains if that is less.

    A tail that would be smaller than `min_local_batch` joins the step before it, which then exceeds the global batch
    by less than `min_local_batch`. 0 when nothing remains.
    """
    check_batch(global_batch, min_local_batch)
    _check_range("remaining", remaining, 0, None)
    left = remaining - global_batch
    return remaining if left < min_local_batch else global_batch


def steps_left(remaining: int, global_batch: int, min_local_batch: int = 1) -> int:
    """Number of global steps in which `remaining` samples are consumed."""
    check_batch(global_batch, min_local_batch)
    _check_range("remaining", remaining, 0, None)
    full, tail = divmod(remaining, global_batch)
    folded = full > 0 and tail < min_local_batch
    return full if tail == 0 or folded else full + 1


def rank_span(count: int, rank: int, world_size: int, min_local_batch: int = 1) -> tuple[int, int]:
    """Begin and end of one rank's chunk inside a global step of `count` samples, relative to the step's begin.

    As many of the lowest ranks as can have `min_local_batch` samples share the step, their chunks equal within 1; the
    others get nothing. Raises ValueError when rank, world_size or count is out of range.
    """
    _check_range("world_size", world_size, 1, None)
    _check_range("rank", rank, 0, world_size - 1)
    _check_range("min_local_batch", min_local_batch, 1, None)
    _check_range("count", count, 0, None)
    active = min(world_size, max(1, count // min_local_batch))
    if rank >= active:
        return count, count
    share, extra = divmod(count, active)
    begin = rank * share + min(rank, extra)
    return begin, begin + share + (rank < extra)


def rank_steps(
    order: Indices, position: int, rank: int, world_size: int, global_batch: int, min_local_batch: int = 1
) -> Iterator[RankStep]:
    """The global steps from `position` to the end of the epoch, with the chunk that `rank` takes of each.

    `order` is permutation(), int64 [size]; the indices of the steps are views of it. The arguments are checked here
    and now, not at the first step.
    """
    check_batch(global_batch, min_local_batch)
    _check_range("position", position, 0, len(order))
    rank_span(0, rank, world_size, min_local_batch)
    return _rank_steps(order, position, rank, world_size, global_batch, min_local_batch)


def _rank_steps(
    order: Indices, position: int, rank: int, world_size: int, global_batch: int, min_local_batch: int
) -> Iterator[RankStep]:
    size = len(order)
    while position < size:
        count = step_count(size - position, global_batch, min_local_batch)
        begin, end = rank_span(count, rank, world_size, min_local_batch)
        yield RankStep(position, count, order[position + begin : position + end])
        position += count


def check_batch(global_batch: int, min_local_batch: int) -> None:
    """Raise ValueError unless 1 <= min_local_batch <= global_batch."""
    if not 1 <= min_local_batch <= global_batch:
        raise ValueError(
            f"min_local_batch {min_local_batch} must be at least 1 and at most the global batch {global_batch}"
        )


def _check_range(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} must be {bound}, not {value}")
