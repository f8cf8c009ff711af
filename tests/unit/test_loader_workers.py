"""The worker processes of a DataLoader go on through a resize, and read what the new world needs."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from edl_collective.batches import ElasticBatchSampler, StepInfo, iterate
from edl_collective.loader_workers import LoaderWorkers
from edl_collective.scaling import TotalBatch

SAMPLES = 40


class WhoRead(Dataset[tuple[int, int]]):
    """Gives (index, pid of the process that read it)."""

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, os.getpid()

    def __len__(self) -> int:
        return SAMPLES


class Reading:
    """Reads some steps of an epoch through `workers`; remembers indices and pids."""

    def __init__(self, num_workers: int = 2) -> None:
        self.sampler = ElasticBatchSampler(SAMPLES, TotalBatch(4), shuffle=False)
        self.loader: DataLoader[Any] = DataLoader(WhoRead(), batch_sampler=self.sampler, num_workers=num_workers)
        self.workers = LoaderWorkers()

    def steps(self, count: int) -> tuple[list[int], set[int]]:
        """Indices and pids of the next `count` steps; then the iteration ends early, as in a resize."""
        indices: list[int] = []
        pids: set[int] = set()
        epoch = self.sampler.epoch
        under_way: Iterator[tuple[StepInfo, Any]] = iterate(
            self.loader, self.sampler, lambda loader: self.workers.iterate(loader, epoch)
        )
        for _ in range(count):
            info, (numbers, readers) = next(under_way)
            indices += numbers.tolist()
            pids |= set(readers.tolist())
            self.sampler.advance(info.global_count)
        return indices, pids


@pytest.fixture
def reading() -> Iterator[Reading]:
    reading = Reading()
    yield reading
    reading.workers.forget()


def test_the_same_processes_read_the_share_of_the_new_world(reading: Reading) -> None:
    before, first = reading.steps(3)
    assert before == list(range(12))
    reading.sampler.set_world(1, 2, 2)
    after, second = reading.steps(2)
    assert after == [14, 15, 18, 19], "the second half of each step from the position on, nothing that was read ahead"
    assert second == first
    assert os.getpid() not in second


def test_a_new_epoch_has_new_processes(reading: Reading) -> None:
    _, first = reading.steps(2)
    reading.sampler.set_epoch(1)
    indices, second = reading.steps(2)
    assert indices == list(range(8))
    assert not first & second


def test_another_loader_has_its_own_processes(reading: Reading) -> None:
    _, first = reading.steps(2)
    reading.loader = DataLoader(WhoRead(), batch_sampler=reading.sampler, num_workers=1)
    indices, second = reading.steps(1)
    assert indices == [8, 9, 10, 11]
    assert not first & second


def test_nothing_is_kept_of_a_loader_without_processes() -> None:
    reading = Reading(num_workers=0)
    assert reading.steps(2) == (list(range(8)), {os.getpid()})
    assert reading.steps(1) == ([8, 9, 10, 11], {os.getpid()})


def test_an_epoch_read_to_its_end_can_be_read_again(reading: Reading) -> None:
    progress = reading.sampler.state_dict()
    reading.steps(SAMPLES // 4)
    reading.sampler.load_state_dict(progress)
    assert reading.steps(2)[0] == list(range(8))


def test_what_a_worker_could_not_read_before_the_resize_is_not_raised_after_it() -> None:
    class Broken(WhoRead):
        def __getitem__(self, index: int) -> tuple[int, int]:
            if index == 8:
                raise LookupError(index)
            return super().__getitem__(index)

    reading = Reading()
    reading.loader = DataLoader(Broken(), batch_sampler=reading.sampler, num_workers=2)
    assert reading.steps(2)[0] == list(range(8))
    reading.sampler.set_world(1, 2, 2)  # the sample that fails is the other rank's now
    assert reading.steps(1)[0] == [10, 11]
    reading.workers.forget()
    assert torch.utils.data.get_worker_info() is None
