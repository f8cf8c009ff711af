"""What a rank of a real Horovod world checks for test_collectives.py; each function below is one check.

Usage: collective_ranks.py RESULTS_DIR. Every rank runs all checks, in order, and writes <rank>.json: name -> "ok" or
what went wrong. The first failure ends the rank, and horovodrun with it: later checks are then missing.
"""

import copy
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from any_state import any_state, assert_same
from state_job import GivenWorlds
from torch.utils.data import DataLoader, TensorDataset

from edl_collective import collectives
from edl_collective.batches import ElasticBatchSampler
from edl_collective.errors import WorldChanged
from edl_collective.held import Held, Progress
from edl_collective.sampler import permutation
from edl_collective.scaling import BatchPolicy, PerWorkerBatch, TotalBatch
from edl_collective.state import State

SAMPLES = 10
RATE = 0.05


def make_model(memory_format: torch.memory_format = torch.contiguous_format) -> torch.nn.Module:
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.Tanh(), torch.nn.Conv2d(3, 2, 2), torch.nn.Flatten(), torch.nn.Linear(2, 1)
    )
    return model.to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]


def make_data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    images = torch.randn(SAMPLES, 2, 4, 4)
    return images, images.sum((1, 2, 3)).unsqueeze(1)  # [sample, 1]


class Job:
    """A small convolution network under the elastic state."""

    def __init__(self, policy: BatchPolicy, model: torch.nn.Module | None = None, held: Held | None = None) -> None:
        self.model = make_model() if model is None else model
        self.sampler = ElasticBatchSampler(SAMPLES, policy, seed=5)
        self.loader = DataLoader(TensorDataset(*make_data()), batch_sampler=self.sampler)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE, momentum=0.9)
        self.state = State(model=self.model, optimizer=optimizer, sampler=self.sampler)
        self.world = GivenWorlds()
        self.world.held = held
        self.state.enter(self.world)

    def train(self) -> "Job":
        """The rest of the epoch."""
        dtype = next(self.model.parameters()).dtype
        for images, targets in self.state.batches(self.loader):
            loss = ((self.model(images.to(dtype)) - targets) ** 2).mean()
            self.state.backward(loss, len(images))
            self.state.step()
        return self

    def step(self) -> "Job":
        """One step, also on a rank that has no sample in it: one rank votes, all stop."""
        self.world.level = hvd.rank() == 0
        try:
            self.train()
        except WorldChanged:
            self.world.level = False
            return self
        raise AssertionError("the vote did not stop this rank")

    def again(self) -> "Job":
        """Another world of the same ranks."""
        self.state.leave_world()
        self.state.enter(self.world)
        return self

    def parts(self) -> dict[str, Any]:
        return copy.deepcopy(self.state.state_dict())

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().float().flatten() for p in self.model.parameters()])


def assert_equal_on_all_ranks(values: torch.Tensor) -> None:
    everyone = hvd.allgather(values.unsqueeze(0))  # [rank, value]
    assert all(torch.equal(row, everyone[0]) for row in everyone), everyone


def one_process(global_batch: int, rate: float) -> torch.Tensor:
    """The weights after an epoch of plain PyTorch on whole batches."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    images, targets = make_data()
    order = torch.from_numpy(permutation(SAMPLES, 5, 0, True))
    for chosen in torch.split(order, global_batch):
        optimizer.zero_grad()
        ((model(images[chosen]) - targets[chosen]) ** 2).mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---- collectives ----------------------------------------------------------------------------------------------------


def rows_come_in_rank_order() -> None:
    rows = collectives.gather_rows([hvd.rank(), -(1 << 60) + hvd.rank()])
    assert rows == [[rank, -(1 << 60) + rank] for rank in range(hvd.size())]


def sums_add_up() -> None:
    assert collectives.sum_across([1.0, hvd.rank()]) == [hvd.size(), sum(range(hvd.size()))]


def json_is_that_of_the_source() -> None:
    for source in range(hvd.size()):
        mine = {"rank": hvd.rank(), "text": "ä" * hvd.rank(), "list": [None, True, 1.5]}
        assert collectives.broadcast_json(mine, source) == {
            "rank": source,
            "text": "ä" * source,
            "list": [None, True, 1.5],
        }


def long_json_is_that_of_the_source() -> None:
    for length in (0, 16 * 1024 - 2, 16 * 1024 - 1, 100_000):
        mine = "x" * length if hvd.rank() == hvd.size() - 1 else "other"
        assert collectives.broadcast_json(mine, hvd.size() - 1) == "x" * length


def small_and_large_tensors_travel() -> None:
    """Small ones together, whatever the sizes of their neighbours' elements; large ones and empty ones alone."""
    for source in range(hvd.size()):
        sizes = [(1, torch.uint8), (3, torch.float64), (5, torch.bool), (0, torch.float32), (70_000, torch.uint8)]
        sizes += [(16_384, torch.float32), (16_385, torch.float32), (2, torch.int64)]
        tensors = [torch.full((count,), hvd.rank() + 1).to(dtype) for count, dtype in sizes]
        strided = torch.full((4, 4), hvd.rank() + 1.0)[:, ::2]
        collectives.broadcast_tensors([*tensors, strided], source)
        for tensor in (*tensors, strided):
            assert torch.equal(tensor, torch.full_like(tensor, source + 1))


def a_state_arrives_whole_whatever_its_tensors() -> None:
    source = hvd.size() - 1
    mine = any_state(hvd.rank() + 1)
    found = collectives.broadcast_state(mine if hvd.rank() == source else None, source, {})
    assert_same(found, any_state(source + 1))


def a_state_arrives_in_the_tensors_that_are_there() -> None:
    source = hvd.size() - 1
    mine = any_state(hvd.rank() + 1)
    mine.pop("nested")
    mine["strided"] = mine["strided"].clone()  # writing through a view of a larger tensor is the caller's risk
    wrong_shape = {**mine, "half": torch.zeros(2, dtype=torch.float16)}
    found = collectives.broadcast_state(mine, source, wrong_shape)
    assert_same(found, {k: v for k, v in any_state(source + 1).items() if k != "nested"})
    assert found["channels_last"] is mine["channels_last"] or hvd.rank() == source
    assert wrong_shape["half"].tolist() == [0.0, 0.0]


# ---- the state of a job in a new world ------------------------------------------------------------------------------


def the_highest_completed_step_wins() -> None:
    job = Job(TotalBatch(4)).step()
    behind = job.parts()
    job.step()
    expected = job.weights()
    if hvd.rank() == 0 and hvd.size() > 1:
        job.state.load_state_dict(behind)
        assert job.state.global_step == 1
    job.again()
    assert job.state.global_step == 2
    assert torch.equal(job.weights(), expected)
    assert_equal_on_all_ranks(job.train().weights())


def a_torn_rank_takes_the_state_of_a_whole_one() -> None:
    job = Job(TotalBatch(4)).step().step()
    expected = job.weights()
    if hvd.rank() == 0 and hvd.size() > 1:
        assert job.state._reducer is not None
        job.state._reducer.torn = True
        with torch.no_grad():
            next(job.model.parameters()).add_(100.0)
    job.again()
    assert torch.equal(job.weights(), expected)
    assert job.state._reducer is not None
    assert not job.state._reducer.torn


def ranks_on_both_sides_of_an_epochs_end_agree() -> None:
    job = Job(TotalBatch(4)).train()
    if hvd.rank() == hvd.size() - 1 and hvd.size() > 1:
        job.sampler.set_epoch(1)  # it has heard the sum that ends the epoch, the others have not
    job.again()
    assert (job.state.epoch, job.sampler.position) == (0, SAMPLES)


def a_newcomer_gets_momentum_buffers_and_progress() -> None:
    job = Job(TotalBatch(4)).step().step()
    job.state.user["note"] = hvd.rank()
    expected = job.weights()
    if hvd.rank() == hvd.size() - 1 and hvd.size() > 1:
        fresh = Job.__new__(Job)
        fresh.__dict__.update(job.__dict__)
        fresh.model = make_model()
        with torch.no_grad():
            next(fresh.model.parameters()).zero_()
        fresh.sampler = ElasticBatchSampler(SAMPLES, TotalBatch(4), seed=5)
        fresh.loader = DataLoader(TensorDataset(*make_data()), batch_sampler=fresh.sampler)
        optimizer = torch.optim.SGD(fresh.model.parameters(), lr=RATE, momentum=0.9)
        fresh.state = State(model=fresh.model, optimizer=optimizer, sampler=fresh.sampler)
        fresh.state.enter(fresh.world)
        job = fresh
    else:
        job.again()
    assert torch.equal(job.weights(), expected)
    assert (job.state.global_step, job.sampler.position, job.state.user) == (2, 8, {"note": 0})
    assert job.sampler.generation == 2
    assert_equal_on_all_ranks(job.train().weights())
    torch.testing.assert_close(job.weights(), one_process(4, RATE), rtol=1e-5, atol=1e-6)


def running_statistics_are_those_of_one_rank() -> None:
    policy = TotalBatch(4, min_local_batch=2)
    job = Job(policy, torch.nn.Sequential(make_model(), torch.nn.BatchNorm1d(1))).step()
    norm = job.model[1]  # type: ignore[index]
    norm.running_mean.fill_(float(hvd.rank()))
    job.again()
    assert norm.running_mean.tolist() == [0.0]


def held_in(folder: Path, *states: tuple[Progress, dict[str, Any]]) -> Held:
    """What the node of this rank holds for the next world."""
    for progress, parts in states:
        Held(folder, 0.5).hold(progress, lambda parts=parts: parts)  # type: ignore[misc]
    held = Held(folder, 0.5)
    held.carry(1)
    return held


def a_held_state_that_cannot_be_used_gives_way_to_a_live_one_that_is_behind() -> None:
    job = Job(TotalBatch(4)).step()
    expected = job.weights()
    last = hvd.rank() == hvd.size() - 1
    broken = job.parts()
    broken["model"]["4.bias"] = torch.ones(7)  # found out when the rest is loaded
    if last and hvd.size() > 1:
        job = Job.__new__(Job)
        job.model, job.world = make_model(), GivenWorlds()
        with torch.no_grad():
            next(job.model.parameters()).zero_()
        job.sampler = ElasticBatchSampler(SAMPLES, TotalBatch(4), seed=5)
        optimizer = torch.optim.SGD(job.model.parameters(), lr=RATE, momentum=0.9)
        job.state = State(model=job.model, optimizer=optimizer, sampler=job.sampler)
        with tempfile.TemporaryDirectory() as folder:
            job.world.held = held_in(Path(folder), (Progress(2, 0), broken))
            job.state.enter(job.world)
    else:
        job.again()
    assert job.state.global_step == 1
    assert torch.equal(job.weights(), expected)
    assert_equal_on_all_ranks(job.weights())


def of_held_states_at_an_epochs_end_the_one_before_it_is_taken() -> None:
    done = Job(TotalBatch(4)).train()
    before = done.parts()
    done.sampler.set_epoch(1)
    after = done.parts()
    last = hvd.rank() == hvd.size() - 1
    mine = (Progress(3, 0), before) if last else (Progress(3, 1), after)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(TotalBatch(4), held=held_in(Path(folder), mine))
        assert job.world.held is not None
        assert job.world.held.newest() is None
    assert (job.state.epoch, job.state.global_step, job.sampler.position) == (0, 3, SAMPLES)


# ---- batch policies under a real reduction --------------------------------------------------------------------------


def total_batch_trains_as_one_process_does() -> None:
    job = Job(TotalBatch(4)).train()  # on three ranks the last step, of two samples, leaves one without any
    torch.testing.assert_close(job.weights(), one_process(4, RATE), rtol=1e-5, atol=1e-6)
    assert_equal_on_all_ranks(job.weights())


def total_batch_with_a_smallest_chunk_trains_as_one_process_does() -> None:
    job = Job(TotalBatch(4, min_local_batch=2)).train()  # on three ranks one has no sample in any step
    torch.testing.assert_close(job.weights(), one_process(4, RATE), rtol=1e-5, atol=1e-6)


def per_worker_batch_and_rate_grow_with_the_world() -> None:
    job = Job(PerWorkerBatch(2))
    assert job.sampler.global_batch == 2 * hvd.size()
    job.train()
    torch.testing.assert_close(job.weights(), one_process(2 * hvd.size(), RATE * hvd.size()), rtol=1e-5, atol=1e-6)


def channels_last_weights_train_as_others_do() -> None:
    job = Job(TotalBatch(4), make_model(torch.channels_last)).train()
    torch.testing.assert_close(job.weights(), one_process(4, RATE), rtol=1e-5, atol=1e-6)
    weight = next(job.model.parameters())
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    job.again()
    assert weight.is_contiguous(memory_format=torch.channels_last)


def bfloat16_weights_are_reduced() -> None:
    job = Job(TotalBatch(4), make_model().bfloat16()).train()
    torch.testing.assert_close(job.weights(), one_process(4, RATE), rtol=0.1, atol=0.05)
    assert_equal_on_all_ranks(job.weights())


CHECKS: list[Callable[[], None]] = [
    rows_come_in_rank_order,
    sums_add_up,
    json_is_that_of_the_source,
    long_json_is_that_of_the_source,
    small_and_large_tensors_travel,
    a_state_arrives_whole_whatever_its_tensors,
    a_state_arrives_in_the_tensors_that_are_there,
    the_highest_completed_step_wins,
    a_torn_rank_takes_the_state_of_a_whole_one,
    ranks_on_both_sides_of_an_epochs_end_agree,
    a_newcomer_gets_momentum_buffers_and_progress,
    running_statistics_are_those_of_one_rank,
    a_held_state_that_cannot_be_used_gives_way_to_a_live_one_that_is_behind,
    of_held_states_at_an_epochs_end_the_one_before_it_is_taken,
    total_batch_trains_as_one_process_does,
    total_batch_with_a_smallest_chunk_trains_as_one_process_does,
    per_worker_batch_and_rate_grow_with_the_world,
    channels_last_weights_train_as_others_do,
    bfloat16_weights_are_reduced,
]


def main(results_dir: Path) -> None:
    hvd.init()
    results = {}
    for check in CHECKS:
        try:
            check()
            results[check.__name__] = "ok"
        except Exception:
            results[check.__name__] = traceback.format_exc()
        (results_dir / f"{hvd.rank()}.json").write_text(json.dumps({"size": hvd.size(), "checks": results}))
        if results[check.__name__] != "ok":
            os._exit(1)  # the ranks are out of step; an ordinary exit would wait for the others


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
