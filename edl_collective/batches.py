"""Elastic batches for a torch DataLoader: ElasticBatchSampler, iterate() and RecordingDataset.

The sampler holds the progress (epoch, position) and plans the rest of the epoch for its rank; iterate() pairs every
global step with this rank's batch, or with None where this rank has no sample and only takes part in the reduction.

Invariant: progress moves only by advance(), once per completed step. A DataLoader may prefetch as far as it likes; an
iteration that ends early (exception, break, resize) changes nothing, and the next one starts from the position. An
iteration that outlives a resize, or whose step was not advanced, raises ProgressError instead of going on wrongly.

This module knows no collective: whoever calls set_world() and load_state_dict() keeps the ranks equal.

    sampler = ElasticBatchSampler(len(dataset), TotalBatch(256, min_local_batch=2), seed=1)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=2)
    for step, batch in iterate(loader, sampler):
        ...                                   # sum of losses / step.global_count; reduce with op=Sum; optimizer.step()
        sampler.advance(step.global_count)
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from torch.utils.data import DataLoader, Dataset, Sampler

from edl_collective.errors import ProgressError, StepOrderError
from edl_collective.ledger import Ledger
from edl_collective.sampler import Indices, RankStep, permutation, rank_span, rank_steps, step_count, steps_left
from edl_collective.scaling import BatchPolicy, BatchScale

STATE_VERSION = 1
_STATE_FIELDS = {"version", "dataset_size", "seed", "shuffle", "epoch", "position", "step", "scale", "ledger"}

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One global step, as the training loop sees it."""

    #: global steps completed before this one, over all epochs of the surviving lineage
    index: int
    #: samples of the step over all ranks: the divisor of the summed loss
    global_count: int
    #: samples of this rank, 0 when its batch is None
    local_count: int


class ElasticBatchSampler(Sampler[list[int]]):
    """A batch sampler whose batches are this rank's chunks of the rest of the epoch.

    Arguments: dataset_size, samples of an epoch, at least 1; policy, the batch policy; seed, 0 to 2**64 - 1, the same
    on every rank; shuffle, False for the order of the dataset. It starts as the only rank of generation 0 at the
    start of epoch 0. Raises ValueError when an argument is out of range.
    """

    def __init__(self, dataset_size: int, policy: BatchPolicy, *, seed: int = 0, shuffle: bool = True) -> None:
        if dataset_size < 1:
            raise ValueError(f"dataset_size must be at least 1, not {dataset_size}: is the dataset's folder empty?")
        self._size = dataset_size
        self._policy = policy
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 0
        self._position = 0
        self._step = 0
        self._rank = 0
        self._world_size = 1
        self._generation = 0
        self._ledger = Ledger()
        #: as of the last completed step; a resize since then shows in _scale_now() only, so that ranks which learn of
        #: it before or after they load the state end up with the same value
        self._scale = BatchScale()
        #: batches of a rehearsal under way
        self._rehearsed = 0
        #: changes whenever a running iteration no longer fits
        self._revision = 0
        self._order: Indices = permutation(dataset_size, seed, 0, shuffle)

    @property
    def dataset_size(self) -> int:
        """Samples of an epoch."""
        return self._size

    @property
    def epoch(self) -> int:
        """The epoch under way, or just completed."""
        return self._epoch

    @property
    def position(self) -> int:
        """Samples that all ranks together have consumed in this epoch; dataset_size when it is completed."""
        return self._position

    @property
    def step(self) -> int:
        """Global steps completed over all epochs of the surviving lineage."""
        return self._step

    @property
    def generation(self) -> int:
        """The generation of set_world(), 0 before it."""
        return self._generation

    @property
    def samples_seen(self) -> int:
        """Samples of the whole training up to here, as lr_at() wants them."""
        return self._epoch * self._size + self._position

    @property
    def lr_scale(self) -> float:
        """The factor of the batch policy on the learning rate, now."""
        return self._scale_now().at(self.samples_seen)

    @property
    def global_batch(self) -> int:
        """Samples of a full global step at this world size."""
        return self._policy.global_batch(self._world_size)

    @property
    def ledger(self) -> Ledger:
        """What was consumed in which generation; read it, do not change it."""
        return self._ledger

    def set_world(self, rank: int, world_size: int, generation: int) -> None:
        """Plan the rest of the epoch for another world; running iterations end with ProgressError.

        Raises ValueError when rank, world_size or generation is out of range.
        """
        rank_span(0, rank, world_size)
        if generation < 0:
            raise ValueError(f"generation must be at least 0, not {generation}")
        self._rank, self._world_size, self._generation = rank, world_size, generation
        self._revision += 1

    def set_epoch(self, epoch: int) -> None:
        """Start `epoch` from its first sample; the epoch under way goes on where it is, so a resumed loop may say it.

        Raises ValueError for an earlier epoch: progress goes back only by load_state_dict(), together with the model.
        """
        if epoch < self._epoch:
            raise ValueError(f"epoch must be at least {self._epoch}, the epoch under way, not {epoch}")
        if epoch > self._epoch:
            self._move_to(self._seed, self._shuffle, epoch, 0)

    def advance(self, count: int) -> None:
        """Note that the next global step is completed: the parameters of this rank contain its `count` samples.

        Raises ProgressError when the next step has another count, as after a resize or at the end of the epoch.
        """
        begin = self._position
        expected = step_count(self._size - begin, self.global_batch, self._policy.min_local_batch)
        if count != expected or count == 0:
            raise ProgressError(
                f"the next step of epoch {self._epoch} at position {begin} has {expected} samples, not {count}: call "
                "advance(step.global_count) once for each step of iterate()"
            )
        self._scale = self._scale_now()
        self._ledger.append(self._epoch, self._generation, begin, begin + count, self._world_size)
        self._position += count
        self._step += 1
        if self._position == self._size:
            self._ledger.complete(self._epoch, self._size)

    def steps(self) -> Iterator[RankStep]:
        """The global steps from the position to the end of the epoch, as planned now for this rank."""
        return rank_steps(
            self._order, self._position, self._rank, self._world_size, self.global_batch, self._policy.min_local_batch
        )

    @contextlib.contextmanager
    def rehearsal(self, count: int) -> Iterator[None]:
        """Iterations that begin in this block get `count` batches of the smallest size, and are no part of an epoch."""
        self._rehearsed = count
        try:
            yield
        finally:
            self._rehearsed = 0

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's chunks that are not empty, as a DataLoader wants them."""
        if self._rehearsed:
            smallest = list(range(min(self._policy.min_local_batch, self._size)))
            return iter([smallest] * self._rehearsed)
        planned = self.steps()  # here and now: a later resize must not change what a running loader reads
        return (step.indices.tolist() for step in planned if len(step.indices))

    def __len__(self) -> int:
        """Global steps left in the epoch; this rank's chunk may be empty in some of them."""
        return steps_left(self._size - self._position, self.global_batch, self._policy.min_local_batch)

    def state_dict(self) -> dict[str, Any]:
        """The progress as plain JSON types, equal on all ranks after a completed step."""
        return {
            "version": STATE_VERSION,
            "dataset_size": self._size,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "epoch": self._epoch,
            "position": self._position,
            "step": self._step,
            "scale": list(astuple(self._scale)),
            "ledger": self._ledger.to_json(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the progress of state_dict(), seed and order included; running iterations end with ProgressError.

        The world stays as set_world() made it, before or after. Nothing changes when it raises: ValueError when the
        state is of another version or dataset, LedgerError when its ledger does not parse, ProgressError when ledger
        and position disagree.
        """
        ledger = _check_state(state, self._size)
        self._move_to(state["seed"], state["shuffle"], state["epoch"], state["position"])
        self._step = state["step"]
        self._ledger = ledger
        self._scale = BatchScale(*state["scale"])

    def _move_to(self, seed: int, shuffle: bool, epoch: int, position: int) -> None:
        if (seed, shuffle, epoch) != (self._seed, self._shuffle, self._epoch):  # else spare a resize the sorting
            self._order = permutation(self._size, seed, epoch, shuffle)
        self._seed, self._shuffle, self._epoch, self._position = seed, shuffle, epoch, position
        self._revision += 1

    def _scale_now(self) -> BatchScale:
        # Before the first step nothing was trained at another batch: no warm-up from there.
        current = self._scale if self._step else None
        return self._policy.rescale(current, self.samples_seen, self._world_size)

    def _check_iteration(self, revision: int, position: int) -> None:
        if self._revision != revision:
            raise ProgressError(
                "the world, the epoch or the state changed during this iteration: start a new iterate(), it goes on "
                f"at position {self._position} of epoch {self._epoch}"
            )
        if self._position != position:
            raise ProgressError(
                f"this iteration is at position {position} of epoch {self._epoch}, the sampler at {self._position}: "
                "call advance(step.global_count) once for each completed step"
            )


def iterate(
    loader: Iterable[T], sampler: ElasticBatchSampler, start: Callable[[Iterable[T]], Iterator[T]] = iter
) -> Iterator[tuple[StepInfo, T | None]]:
    """Every global step left in the epoch with this rank's batch, or None where this rank has no sample.

    Arguments: loader, a DataLoader built with batch_sampler=sampler, or anything that yields one item for each batch
    of it, in order; sampler, which the caller advances after each completed step; start, which begins the iteration
    over the loader when the first step is asked for.
    Raises ValueError for a DataLoader that does not use the sampler or may change its order; ProgressError when the
    world or the state changed since the first step, when a step was not advanced, and when the loader yields fewer or
    more batches than planned.
    """
    own = getattr(loader, "batch_sampler", None)  # what wraps a DataLoader may say whose batches it reads, too
    if (own is not None or isinstance(loader, DataLoader)) and own is not sampler:
        raise ValueError("the DataLoader must be built with batch_sampler= the sampler that iterate() is given")
    if isinstance(loader, DataLoader) and not loader.in_order:
        raise ValueError("the DataLoader must keep the order of its batches: in_order=True, not False")
    return _iterate(loader, sampler, start)


def _iterate(
    loader: Iterable[T], sampler: ElasticBatchSampler, start: Callable[[Iterable[T]], Iterator[T]]
) -> Iterator[tuple[StepInfo, T | None]]:
    revision = sampler._revision
    planned = sampler.steps()
    batches = start(loader)
    for step in planned:
        sampler._check_iteration(revision, step.begin)
        local_count = len(step.indices)
        batch = _next_batch(batches) if local_count else None
        yield StepInfo(sampler.step, step.global_count, local_count), batch
    sampler._check_iteration(revision, sampler.dataset_size)
    for _ in batches:  # asking once more also lets a DataLoader end its workers' epoch
        raise ProgressError(
            "the loader yields more batches than its sampler planned: it must yield one for each of them"
        )


def _next_batch(batches: Iterator[T]) -> T:
    for batch in batches:
        return batch
    raise ProgressError("the loader ended before its sampler: it must yield one batch for each of them")


def _check_state(state: dict[str, Any], dataset_size: int) -> Ledger:
    if set(state) != _STATE_FIELDS or state["version"] != STATE_VERSION:
        raise ValueError(f"the sampler state must have version {STATE_VERSION} and exactly {sorted(_STATE_FIELDS)}")
    if state["dataset_size"] != dataset_size:
        raise ValueError(
            f"the sampler state is of a dataset of {state['dataset_size']} samples, this one has {dataset_size}: "
            "resume with the same dataset, or start anew with an empty checkpoint directory"
        )
    epoch, position = state["epoch"], state["position"]
    ledger = Ledger.from_json(state["ledger"])
    beyond = any((row.epoch, row.end) > (epoch, position) for row in ledger.rows)
    if beyond or ledger.missing(epoch, position) or ledger.doubled(epoch):
        raise ProgressError(f"the ledger of the sampler state does not lead to position {position} of epoch {epoch}")
    return ledger


class Recorded(NamedTuple, Generic[T]):
    """A sample with the index under which the dataset gave it; collated, `sample_index` is an int64 tensor [batch]."""

    sample_index: int
    item: T


class _Readable(Protocol[T_co]):
    def __getitem__(self, index: int, /) -> T_co: ...

    def __len__(self) -> int: ...


class RecordingDataset(Dataset[Recorded[T]]):
    """A map-style dataset that sends each sample's index along with it, for StepLog (audit.py).

    The index travels inside the sample, so it survives DataLoader worker processes, prefetching and pinning, and says
    what was read, not what was planned. torch's default collate keeps the Recorded tuple.
    """

    def __init__(self, dataset: _Readable[T]) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> Recorded[T]:
        return Recorded(index, self._dataset[index])

    def __len__(self) -> int:
        return len(self._dataset)


def unwrap(batch: Any) -> tuple[list[int], Any]:
    """The indices of a batch of a RecordingDataset, and the batch as it would be without; None has no indices.

    Raises StepOrderError for a batch of another dataset.
    """
    if batch is None:
        return [], None
    if not isinstance(batch, Recorded):
        raise StepOrderError("step_log is set: wrap the dataset of the loader in RecordingDataset")
    recorded, item = tuple(batch)  # int64 [local batch] and the collated item
    return recorded.tolist(), item
