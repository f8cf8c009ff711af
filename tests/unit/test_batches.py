"""A DataLoader over an elastic batch sampler: each sample once, whatever breaks, leaves or comes back meanwhile."""

import json
import os
import pickle
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, default_collate

from edl_collective.batches import ElasticBatchSampler, Recorded, RecordingDataset, StepInfo, iterate
from edl_collective.errors import LedgerError, ProgressError
from edl_collective.scaling import BatchPolicy, PerWorkerBatch, TotalBatch


class Squares(Dataset[torch.Tensor]):
    """Sample i is i * i; reading `broken` raises, reading `deadly` kills the worker process that reads it."""

    def __init__(self, size: int, broken: int = -1, deadly: int = -1) -> None:
        self.size = size
        self.broken = broken
        self.deadly = deadly

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.broken:
            raise OSError("unreadable sample")
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(index * index)

    def __len__(self) -> int:
        return self.size


def _sampler(size: int = 40, total: int = 8, *, rank: int = 0, world: int = 1, **options: Any) -> ElasticBatchSampler:
    sampler = ElasticBatchSampler(size, TotalBatch(total, options.pop("min_local_batch", 1)), seed=5, **options)
    sampler.set_world(rank, world, generation=1)
    return sampler


def _run(loader: Any, sampler: ElasticBatchSampler, steps: int | None = None) -> list[int]:
    """The squares that `steps` completed steps read, or those of the rest of the epoch."""
    seen: list[int] = []
    for number, (step, batch) in enumerate(iterate(loader, sampler)):
        if number == steps:
            break
        assert (batch is None) == (step.local_count == 0)
        seen += [] if batch is None else batch.tolist()
        sampler.advance(step.global_count)
    return seen


def _squares(size: int) -> list[int]:
    return [index * index for index in range(size)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2, "prefetch_factor": 3},
        {"num_workers": 2, "persistent_workers": True},
        {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"},
    ],
    ids=["same process", "workers", "persistent workers", "spawned"],
)
def test_loader_goes_on_after_breaks_and_resizes(options: dict[str, Any]) -> None:
    sampler = _sampler(size=45)
    loader = DataLoader(Squares(45), batch_sampler=sampler, **options)
    seen = _run(loader, sampler, steps=2)
    assert sampler.position == 16  # what the workers prefetched does not count
    sampler.set_world(0, 1, generation=2)
    seen += _run(loader, sampler, steps=1)
    seen += _run(loader, sampler)
    assert sorted(seen) == _squares(45)
    assert _run(loader, sampler) == []
    sampler.set_epoch(1)
    assert sorted(_run(loader, sampler)) == _squares(45)


def _pinned_batches_arrive() -> None:
    sampler = _sampler()
    loader = DataLoader(RecordingDataset(Squares(40)), batch_sampler=sampler, num_workers=1, pin_memory=True)
    for step, batch in iterate(loader, sampler):
        assert type(batch) is Recorded
        assert batch.item.is_pinned()
        sampler.advance(step.global_count)
    assert sampler.position == 40


if torch.cuda.is_available():  # torch pins memory only where there is a GPU
    test_pinned_batches_arrive = _pinned_batches_arrive


def test_exception_of_a_sample_reaches_the_loop_and_breaks_nothing() -> None:
    sampler = _sampler(shuffle=False)
    dataset = Squares(40, broken=19)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=1)
    with pytest.raises(OSError, match="unreadable sample"):
        _run(loader, sampler)
    assert sampler.position == 16
    dataset.broken = -1
    assert _run(loader, sampler) == _squares(40)[16:]


def test_killed_loader_worker_reaches_the_loop_and_breaks_nothing() -> None:
    sampler = _sampler(shuffle=False)
    dataset = Squares(40, deadly=19)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=1, prefetch_factor=1)
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|is killed"):
        _run(loader, sampler)
    reached = sampler.position
    dataset.deadly = -1
    assert _run(loader, sampler) == _squares(40)[reached:]


def test_rank_without_samples_gets_every_step() -> None:
    seen = []
    for rank in range(8):
        sampler = _sampler(size=3, total=64, rank=rank, world=8)
        steps = list(_stepping(sampler, DataLoader(Squares(3), batch_sampler=sampler)))
        assert [step for step, _ in steps] == [StepInfo(0, 3, 1 if rank < 3 else 0)]
        seen += [batch.item() for _, batch in steps if batch is not None]
        assert sampler.position == 3
    assert sorted(seen) == _squares(3)


def _stepping(sampler: ElasticBatchSampler, loader: Any) -> Iterator[tuple[StepInfo, Any]]:
    for step, batch in iterate(loader, sampler):
        yield step, batch
        sampler.advance(step.global_count)


@settings(max_examples=40)
@given(
    size=st.integers(1, 60),
    policy=st.one_of(
        st.builds(TotalBatch, st.integers(3, 40), st.integers(1, 3)),
        st.builds(PerWorkerBatch, st.integers(3, 9), min_local_batch=st.integers(1, 3)),
    ),
    data=st.data(),
)
def test_each_sample_once_with_workers_that_come_fail_and_return(
    size: int, policy: BatchPolicy, data: st.DataObject
) -> None:
    """Each generation makes some steps, then fails in one that no rank, or only one rank, has completed."""
    source = ElasticBatchSampler(size, policy, seed=3)
    consumed: Counter[tuple[int, int]] = Counter()
    generation = 0
    while source.epoch < 2:
        generation += 1
        ranks = _new_world(source, policy, data.draw(st.integers(1, 6), label="world"), generation)
        runs = [iterate(list(rank), rank) for rank in ranks]
        for _ in range(data.draw(st.integers(1, 4), label="steps")):
            consumed += _take(runs, source.epoch)
            for rank in ranks:
                rank.advance(sum(consumed.values()) - rank.samples_seen)
                assert rank.state_dict() == ranks[0].state_dict()
            if ranks[0].position == size:
                assert [next(run, None) for run in runs] == [None] * len(runs)
                break
        source = ranks[0]
        if source.position == size:
            source.set_epoch(source.epoch + 1)
        elif data.draw(st.booleans(), label="one rank completes the failing step"):
            consumed += _take(runs, source.epoch)
            source = ranks[-1]
            source.advance(sum(consumed.values()) - source.samples_seen)
            if source.position == size:
                source.set_epoch(source.epoch + 1)
    assert consumed == Counter({(epoch, index): 1 for epoch in range(2) for index in range(size)})
    assert len(source.ledger.rows) == 2


def _new_world(
    source: ElasticBatchSampler, policy: BatchPolicy, world: int, generation: int
) -> list[ElasticBatchSampler]:
    state = json.loads(json.dumps(source.state_dict()))
    ranks = [ElasticBatchSampler(source.dataset_size, policy, seed=generation) for _ in range(world)]
    for number, rank in enumerate(ranks):
        rank.set_world(number, world, generation)
        rank.load_state_dict(state)
    return ranks


def _take(runs: list[Iterator[tuple[StepInfo, list[int] | None]]], epoch: int) -> Counter[tuple[int, int]]:
    """What one global step reads on all ranks, checked against what each rank was told of it."""
    taken = [next(run) for run in runs]
    assert len({(step.index, step.global_count) for step, _ in taken}) == 1
    assert [step.local_count for step, _ in taken] == [len(batch or []) for _, batch in taken]
    assert sum(step.local_count for step, _ in taken) == taken[0][0].global_count
    return Counter((epoch, index) for _, batch in taken for index in batch or [])


def test_iteration_that_outlives_a_resize_is_stopped() -> None:
    sampler = _sampler()
    running = iterate(list(sampler), sampler)
    step, _ = next(running)
    sampler.advance(step.global_count)
    sampler.set_world(0, 2, generation=2)
    with pytest.raises(ProgressError, match=r"start a new iterate\(\)"):
        next(running)


def test_step_that_was_not_advanced_is_named() -> None:
    sampler = _sampler()
    running = iterate(list(sampler), sampler)
    next(running)
    with pytest.raises(ProgressError, match=r"advance\(step.global_count\)"):
        next(running)


def test_last_step_that_was_not_advanced_is_named() -> None:
    sampler = _sampler(size=8)
    with pytest.raises(ProgressError, match=r"advance\(step.global_count\)"):
        list(iterate(list(sampler), sampler))


@pytest.mark.parametrize("count", [0, 7, 9, 40])
def test_advance_takes_only_the_next_step(count: int) -> None:
    sampler = _sampler()
    with pytest.raises(ProgressError, match="has 8 samples"):
        sampler.advance(count)
    assert (sampler.position, sampler.step, sampler.ledger.rows) == (0, 0, ())


def test_advance_beyond_the_epoch_is_refused() -> None:
    sampler = _sampler(size=8)
    sampler.advance(8)
    for count in (0, 8):
        with pytest.raises(ProgressError, match="has 0 samples"):
            sampler.advance(count)


@pytest.mark.parametrize(("yielded", "problem"), [(4, "ended before"), (6, "more batches")])
def test_loader_of_another_length_is_refused(yielded: int, problem: str) -> None:
    sampler = _sampler()
    with pytest.raises(ProgressError, match=problem):
        list(_stepping(sampler, range(yielded)))


def test_loader_of_another_sampler_or_order_is_refused() -> None:
    sampler = _sampler()
    for loader, knob in (
        (DataLoader(Squares(40), batch_size=8), "batch_sampler="),
        (DataLoader(Squares(40), batch_sampler=_sampler()), "batch_sampler="),
        (DataLoader(Squares(40), batch_sampler=sampler, num_workers=1, in_order=False), "in_order=True"),
    ):
        with pytest.raises(ValueError, match=knob):
            iterate(loader, sampler)


def test_length_counts_global_steps_left() -> None:
    sampler = _sampler(size=41, total=8, min_local_batch=2)
    assert len(sampler) == len(list(sampler)) == 5  # the tail of one joins the last full step
    sampler.advance(8)
    assert len(sampler) == 4


def test_epochs_differ_and_resume_where_they_were() -> None:
    sampler = _sampler()
    first = _run(list(map(torch.tensor, sampler)), sampler)
    sampler.set_epoch(0)
    assert sampler.position == 40
    sampler.set_epoch(1)
    assert sampler.position == 0
    assert sampler.samples_seen == 40
    second = [index for batch in sampler for index in batch]
    assert sorted(first) == sorted(second)
    assert first != second
    with pytest.raises(ValueError, match="at least 1"):
        sampler.set_epoch(0)


def test_state_moves_to_another_process_and_world() -> None:
    source = _sampler()
    _run(list(map(torch.tensor, source)), source, steps=2)
    target = ElasticBatchSampler(40, TotalBatch(8), seed=99)
    target.load_state_dict(pickle.loads(pickle.dumps(source.state_dict())))
    assert list(target) == list(source)
    assert target.ledger == source.ledger
    assert target.step == 2


@pytest.mark.parametrize("order", ["world first", "state first"])
def test_rate_climbs_on_every_rank_alike_after_a_growth(order: str) -> None:
    policy = PerWorkerBatch(4, reference_world_size=1, warmup_samples=16)
    veteran = ElasticBatchSampler(400, policy)
    veteran.set_world(0, 2, generation=1)
    assert veteran.lr_scale == 2.0  # no warm-up before the first step
    veteran.advance(8)
    before = veteran.state_dict()
    veteran.set_world(0, 4, generation=2)
    newcomer = ElasticBatchSampler(400, policy)
    if order == "world first":
        newcomer.set_world(3, 4, generation=2)
        newcomer.load_state_dict(before)
    else:
        newcomer.load_state_dict(veteran.state_dict())
        newcomer.set_world(3, 4, generation=2)
    for expected in (2.0, 4.0, 4.0):
        assert veteran.lr_scale == newcomer.lr_scale == expected
        for sampler in (veteran, newcomer):
            sampler.advance(16)


def _with(**changes: Any) -> dict[str, Any]:
    sampler = _sampler()
    sampler.advance(8)
    return sampler.state_dict() | changes


@pytest.mark.parametrize(
    ("state", "error", "problem"),
    [
        (_with(version=2), ValueError, "version 1"),
        (_with(more=1), ValueError, "exactly"),
        (_with(dataset_size=41), ValueError, "41 samples, this one has 40"),
        (_with(position=16), ProgressError, "position 16"),
        (_with(position=0), ProgressError, "position 0"),
        (_with(ledger="{}"), LedgerError, "fields"),
        (_with(ledger='{"version": 1, "rows": [[0, 1, 1, 0, 8, 1], [1, 1, 1, 0, 8, 1]]}'), ProgressError, "position 8"),
    ],
)
def test_state_that_does_not_fit_changes_nothing(state: dict[str, Any], error: type[Exception], problem: str) -> None:
    sampler = _sampler()
    before = sampler.state_dict()
    with pytest.raises(error, match=problem):
        sampler.load_state_dict(state)
    assert sampler.state_dict() == before


def test_bad_world_and_size_are_refused() -> None:
    sampler = _sampler()
    for rank, world, generation in ((1, 1, 1), (-1, 1, 1), (0, 0, 1), (0, 1, -1)):
        with pytest.raises(ValueError, match="must be"):
            sampler.set_world(rank, world, generation)
    with pytest.raises(ValueError, match="dataset_size"):
        ElasticBatchSampler(0, TotalBatch(8))


def test_recorded_index_is_the_one_that_was_read() -> None:
    dataset: Dataset[Any] = RecordingDataset(Squares(40))
    batch: Any = default_collate([dataset[index] for index in (3, 1)])
    assert (batch.sample_index.tolist(), batch.item.tolist()) == ([3, 1], [9, 1])
    assert type(batch) is Recorded
    assert len(RecordingDataset(Squares(40))) == 40


class Wrapped:
    """Says whose batches it reads, as a DataLoader does, and is none."""

    def __init__(self, batch_sampler: ElasticBatchSampler) -> None:
        self.batch_sampler = batch_sampler

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batch_sampler)


def test_what_wraps_a_loader_must_read_the_batches_of_the_sampler_too() -> None:
    sampler, other = (ElasticBatchSampler(8, TotalBatch(4), shuffle=False) for _ in "ab")
    _, batch = next(iterate(Wrapped(sampler), sampler))
    assert batch == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="batch_sampler"):
        iterate(Wrapped(other), sampler)
