"""Random numbers depend on the seed, the step and the rank, and on nothing that a resize or a restart changes."""

import random
from collections.abc import Iterator
from pathlib import Path

import horovod.torch as hvd
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from edl_collective import local
from edl_collective.batches import ElasticBatchSampler
from edl_collective.randomness import reseed
from edl_collective.scaling import TotalBatch
from edl_collective.state import State
from edl_collective.worlds import FixedWorld

Draw = tuple[float, float, float]


def draw() -> Draw:
    return float(torch.rand(())), random.random(), float(np.random.rand())


def after(seed: int, step: int, rank: int) -> Draw:
    reseed(seed, step, rank)
    return draw()


def test_the_same_place_draws_the_same_and_another_place_other_numbers() -> None:
    assert after(1, 2, 3) == after(1, 2, 3)
    places = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (12, 3, 0), (1, 23, 0)]
    for numbers in zip(*(after(*place) for place in places), strict=True):
        assert len(set(numbers)) == len(places)


@pytest.fixture
def _world() -> Iterator[None]:
    hvd.init()
    yield
    hvd.shutdown()
    local._Local.seed = None


def train(url: str, epochs: int, seed: int | None) -> list[float]:
    """The parameters after `epochs` epochs with dropout, resumed from `url` if something is there."""
    local.init(seed=seed)
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    inputs = torch.randn(12, 4)
    sampler = ElasticBatchSampler(12, TotalBatch(4))
    loader = DataLoader(TensorDataset(inputs), batch_sampler=sampler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = State(model=model, optimizer=optimizer, sampler=sampler, checkpoint_url=url)
    state.enter(FixedWorld())
    for _ in state.epochs(epochs):
        for (batch,) in state.batches(loader):
            state.backward(model(batch).square().mean(), len(batch))
            state.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).tolist()


@pytest.mark.usefixtures("_world")
def test_a_resumed_job_is_bit_for_bit_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(f"file://{tmp_path}/whole", 3, seed=5)
    train(f"file://{tmp_path}/parts", 1, seed=5)
    torch.rand(100)  # whatever the process drew in between
    assert train(f"file://{tmp_path}/parts", 3, seed=5) == whole
    assert train(f"file://{tmp_path}/other", 3, seed=6) != whole


@pytest.mark.usefixtures("_world")
def test_a_script_without_a_seed_keeps_its_own_numbers(tmp_path: Path) -> None:
    first = train(f"file://{tmp_path}/first", 2, seed=None)
    assert train(f"file://{tmp_path}/second", 2, seed=None) == first, "torch.manual_seed(7) of the script decides"
