"""The state of a job that its node holds in memory: who goes on from it, and who does not."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import horovod.torch as hvd
import pytest
import torch
from state_job import SAMPLES, GivenWorlds, Job, TornOnce

from edl_collective.errors import StateLost
from edl_collective.held import Held, Progress


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    hvd.init()
    yield
    hvd.shutdown()


def held_in(folder: Path, generation: int) -> Held:
    held = Held(folder, 0.5)
    held.carry(generation)
    return held


def leave_after_two_steps(job: Job) -> None:
    """In the middle of the first epoch."""
    for batch in itertools.islice(job.enter().state.batches(job.loader), 2):
        job.step(batch)
    job.state.leave_world()


def test_who_replaces_a_worker_goes_on_from_what_its_node_holds_not_from_the_checkpoint(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/ckpt"
    undisturbed = Job().enter().train(2)
    lost = Job(checkpoint_url=url, worlds=GivenWorlds(1, held_in(tmp_path / "held", 1))).enter().train(1)
    lost.state.leave_world()
    leave_after_two_steps(lost)
    successor = Job(checkpoint_url=url, worlds=GivenWorlds(2, held_in(tmp_path / "held", 2))).enter()
    assert successor.worlds.told("resume") == ["went on at step 5 from the state that a node held in memory"]
    assert (successor.state.epoch, successor.sampler.position) == (1, 8)
    assert successor.train(2).weights() == undisturbed.weights()


def test_a_world_that_is_equal_holds_nothing_any_more(tmp_path: Path) -> None:
    leave_after_two_steps(Job(worlds=GivenWorlds(1, held_in(tmp_path, 1))))
    assert held_in(tmp_path, 1).newest() is not None
    Job(worlds=GivenWorlds(2, held_in(tmp_path, 2))).enter()
    assert held_in(tmp_path, 2).newest() is None


def test_a_rank_that_is_torn_holds_nothing_and_takes_what_another_held(tmp_path: Path) -> None:
    job = Job(optimizer=TornOnce, worlds=GivenWorlds(1, held_in(tmp_path, 1)))
    leave_after_two_steps(job)
    job.enter()
    assert job.worlds.held is not None
    TornOnce.fail = True
    with pytest.raises(RuntimeError, match="torn"):
        job.step(next(job.state.batches(job.loader)))
    job.state.leave_world()
    assert job.worlds.held.newest() is None
    whole = Job(worlds=GivenWorlds(1, held_in(tmp_path, 1)))
    leave_after_two_steps(whole)
    job.worlds.held.carry(2)
    assert job.enter().weights() == whole.weights()


def test_a_held_state_that_cannot_be_read_gives_way_to_the_checkpoint(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/ckpt"
    leave_after_two_steps(Job(checkpoint_url=url, worlds=GivenWorlds(1, held_in(tmp_path / "held", 1))))
    Job(checkpoint_url=url).enter().train(1)
    (path,) = (tmp_path / "held").glob("held-*")
    path.write_bytes(path.read_bytes()[:-1])
    job = Job(checkpoint_url=url, worlds=GivenWorlds(2, held_in(tmp_path / "held", 2))).enter()
    assert job.worlds.told("resume") == ["resumed from a checkpoint at epoch 1"]


def another_model_in(folder: Path) -> Held:
    """A node that holds the state of a model of another shape, further than any."""
    other = Job()
    other.enter()
    parts = other.state.state_dict()
    parts["model"] = {name: torch.cat([value, value]) for name, value in parts["model"].items()}
    held_in(folder, 1).hold(Progress(1000, 9), lambda: parts)
    return held_in(folder, 2)


def test_a_held_state_of_another_model_gives_way_to_the_checkpoint_and_is_thrown_away(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/ckpt"
    expected = Job(checkpoint_url=url).enter().train(1).weights()
    held = another_model_in(tmp_path / "held")
    job = Job(checkpoint_url=url, worlds=GivenWorlds(2, held)).enter()
    assert job.weights() == expected
    assert (job.state.epoch, job.state.global_step) == (1, 3)
    assert held.newest() is None


def test_a_model_that_was_loaded_in_part_is_not_trained_on(tmp_path: Path) -> None:
    held = another_model_in(tmp_path)
    with pytest.raises(StateLost):
        Job(worlds=GivenWorlds(2, held)).enter()
    assert Job(worlds=GivenWorlds(2, held)).enter().state.global_step == 0, "the next attempt has a fresh state"


def test_at_the_end_of_an_epoch_a_rank_goes_on_from_its_own_state(tmp_path: Path) -> None:
    """Another rank of the node came through the end; which epochs are saved is for the lowest rank to say."""
    other = Job().enter().train(1)
    held_in(tmp_path, 1).hold(Progress(3, 1), other.state.state_dict)
    job = Job(worlds=GivenWorlds(1)).enter()
    for batch in job.state.batches(job.loader):
        job.step(batch)
    job.state.leave_world()
    job.worlds.generation, job.worlds.held = 2, held_in(tmp_path, 2)
    assert job.worlds.held.newest() == Progress(3, 1)
    assert (job.enter().state.epoch, job.sampler.position) == (0, SAMPLES)
