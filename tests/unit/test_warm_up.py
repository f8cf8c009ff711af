"""What a standby does before it is let in leaves no trace, and is not done again."""

import os
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from edl_collective import warm_up
from edl_collective.batches import ElasticBatchSampler, RecordingDataset, StepInfo, iterate
from edl_collective.loader_workers import LoaderWorkers
from edl_collective.scaling import TotalBatch
from edl_collective.warm_up import Rehearsal

SAMPLES = 40


class Pixels(Dataset[tuple[torch.Tensor, int, int]]):
    """Gives (image [3], index, pid of the process that read it)."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        return torch.full((3,), float(index)), index, os.getpid()

    def __len__(self) -> int:
        return SAMPLES


@pytest.fixture(autouse=True)
def _workers_end() -> Iterator[None]:
    """End the workers of each script here and now, not when its memory is collected."""
    yield
    while Script.made:
        Script.made.pop().workers.end()


class Script:
    """A model with running statistics and dropout, and what its rehearsal saw."""

    made: ClassVar[list["Script"]] = []

    def __init__(self, num_workers: int = 2, *, recorded: bool = False) -> None:
        Script.made.append(self)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
        self.sampler = ElasticBatchSampler(SAMPLES, TotalBatch(8, min_local_batch=2), shuffle=False)
        dataset: Any = RecordingDataset(Pixels()) if recorded else Pixels()
        self.loader: DataLoader[Any] = DataLoader(dataset, batch_sampler=self.sampler, num_workers=num_workers)
        self.workers = LoaderWorkers()
        self.seen: list[tuple[int, ...]] = []
        self.pids: set[int] = set()
        self.rehearsal = Rehearsal(self.model, self.sampler, self.workers, self.loader, self.loss_of, recorded=recorded)

    def loss_of(self, batch: Any) -> torch.Tensor:
        images, indices, pids = batch
        self.seen.append(tuple(indices.tolist()))
        self.pids |= set(pids.tolist())
        loss: torch.Tensor = self.model(images).square().mean()
        return loss

    def epoch(self) -> tuple[list[int], set[int]]:
        """Indices that an epoch reads after the rehearsal, and the processes that read them."""
        indices: list[int] = []
        pids: set[int] = set()
        steps: Iterator[tuple[StepInfo, Any]] = iterate(
            self.loader, self.sampler, lambda loader: self.workers.iterate(loader, 0)
        )
        for info, batch in steps:
            indices += batch[1].tolist()
            pids |= set(batch[2].tolist())
            self.sampler.advance(info.global_count)
        return indices, pids


def test_the_smallest_batch_goes_through_the_model_and_nothing_of_it_stays() -> None:
    script = Script()
    before = {name: value.clone() for name, value in script.model.state_dict().items()}
    random = torch.get_rng_state()
    script.rehearsal.run()
    assert script.seen == [(0, 1)]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in script.model.parameters())
    for name, value in script.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert script.sampler.position == 0


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_first_epoch_is_read_by_the_workers_that_are_there(num_workers: int) -> None:
    script = Script(num_workers)
    script.rehearsal.run()
    indices, pids = script.epoch()
    assert indices == list(range(SAMPLES)), "each sample once, those of the rehearsal too"
    assert script.pids <= pids
    assert len(pids) == num_workers
    assert os.getpid() not in pids


def test_a_large_model_on_the_cpu_shares_no_memory_with_workers_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "MAX_SHARED_BYTES", 4)
    script = Script()
    script.rehearsal.run()
    assert script.seen == [(0, 1)], "it is warmed all the same"
    indices, pids = script.epoch()
    assert indices == list(range(SAMPLES))
    assert not script.pids & pids, "those of the rehearsal have ended"


def test_without_worker_processes_the_model_is_warmed_all_the_same() -> None:
    script = Script(0)
    script.rehearsal.run()
    assert script.seen == [(0, 1)]
    assert script.epoch() == (list(range(SAMPLES)), {os.getpid()})


def test_a_recorded_batch_is_given_as_the_script_sees_it() -> None:
    script = Script(0, recorded=True)
    script.rehearsal.run()
    assert script.seen == [(0, 1)]


def test_a_rehearsal_that_could_read_nothing_is_refused() -> None:
    script = Script(0)
    with pytest.raises(ValueError, match="pass the DataLoader"):
        Rehearsal(script.model, script.sampler, script.workers, None, script.loss_of, recorded=False)


def test_what_the_script_raises_is_raised() -> None:
    script = Script(0)

    def broken(_batch: Any) -> torch.Tensor:
        raise ZeroDivisionError

    rehearsal = Rehearsal(script.model, script.sampler, script.workers, script.loader, broken, recorded=False)
    with pytest.raises(ZeroDivisionError):
        rehearsal.run()
