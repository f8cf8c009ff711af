"""The state of a job between two steps, in one process: Horovod is real and alone, the worlds are given."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import horovod.torch as hvd
import pytest
import torch
from state_job import SAMPLES, GivenWorlds, Job, TornOnce

from edl_collective.errors import ProgressError, StateLost, StepOrderError, WorldChanged
from edl_collective.scaling import CosineLR, PerWorkerBatch, lr_at
from edl_collective.state import State


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    hvd.init()
    yield
    hvd.shutdown()


# ---- the order of calls ----------------------------------------------------------------------------------------------


def test_a_state_is_used_inside_run_only() -> None:
    job = Job()
    with pytest.raises(StepOrderError, match=r"edl_collective\.run"):
        next(iter(job.state.batches(job.loader)))


def test_step_needs_a_backward_before_it() -> None:
    job = Job().enter()
    with pytest.raises(StepOrderError, match=r"after state\.backward"):
        job.state.step()
    next(job.state.batches(job.loader))
    with pytest.raises(StepOrderError, match=r"after state\.backward"):
        job.state.step()


def test_backward_belongs_once_to_a_batch_and_knows_its_length() -> None:
    job = Job().enter()
    with pytest.raises(StepOrderError, match="belongs once"):
        job.state.backward(torch.zeros(()), 4)
    batch = next(job.state.batches(job.loader))
    with pytest.raises(ValueError, match="samples is 3 but this batch has 4"):
        job.state.backward(job.loss(batch), 3)
    job.state.backward(job.loss(batch), 4)
    with pytest.raises(StepOrderError, match="belongs once"):
        job.state.backward(job.loss(batch), 4)


def test_a_batch_without_a_step_is_noticed_at_the_next() -> None:
    job = Job().enter()
    batches = job.state.batches(job.loader)
    batch = next(batches)
    job.state.backward(job.loss(batch), 4)
    with pytest.raises(StepOrderError, match=r"state\.step\(\) was not called"):
        next(batches)


def test_an_epoch_that_is_cut_short_is_not_completed() -> None:
    job = Job().enter()
    epochs = job.state.epochs(1)
    next(epochs)
    job.step(next(job.state.batches(job.loader)))
    with pytest.raises(ProgressError, match="epoch 0 ended at sample 4 of 10"):
        next(epochs)
    assert job.state.epoch == 0


# ---- learning rate and resizes ---------------------------------------------------------------------------------------


def test_rates_follow_the_samples_at_every_step() -> None:
    schedule = CosineLR(0.1, 2)
    job = Job(schedule=schedule).enter()
    for _ in job.state.epochs(2):
        for batch in job.state.batches(job.loader):
            rate = lr_at(schedule, job.sampler.samples_seen, SAMPLES)
            assert [group["lr"] for group in job.state.optimizer.param_groups] == [rate, rate * 2.0]
            job.step(batch)
    assert job.state.global_step == 6


def test_without_a_schedule_the_policy_scales_each_groups_own_rate() -> None:
    job = Job(policy=PerWorkerBatch(4, reference_world_size=2)).enter()
    next(job.state.batches(job.loader))
    assert [group["lr"] for group in job.state.optimizer.param_groups] == [0.05, 0.2]


def test_adjust_functions_hear_of_every_world_in_order() -> None:
    job = Job()
    heard: list[tuple[object, ...]] = []
    job.state.on_resize(lambda state, before, now: heard.append(("first", state, before, now)))

    @job.state.on_resize
    def second(state: State, before: int, now: int) -> None:
        heard.append(("second", state, before, now))

    job.enter()
    assert heard == [("first", job.state, 0, 1), ("second", job.state, 0, 1)]
    job.state.leave_world()
    job.enter()
    assert heard[2:] == [("first", job.state, 1, 1), ("second", job.state, 1, 1)]


def test_a_notice_ends_the_world_after_the_step_and_the_next_goes_on_there() -> None:
    undisturbed = Job().enter().train(1)
    job = Job().enter()
    job.worlds.level = True
    with pytest.raises(WorldChanged):
        job.train(1)
    assert (job.sampler.position, job.state.global_step) == (4, 1)
    job.worlds.level = False
    job.state.leave_world()
    job.enter().train(1)
    assert job.weights() == undisturbed.weights()
    assert [(row.begin, row.end) for row in job.sampler.ledger.rows] == [(0, SAMPLES)]


def test_a_failed_step_is_forgotten_and_taken_again() -> None:
    undisturbed = Job().enter().train(1)
    job = Job().enter()
    batch = next(job.state.batches(job.loader))
    job.state.backward(job.loss(batch), 4)
    hvd.shutdown()  # what a collective failure leads to
    job.state.leave_world()
    hvd.init()
    job.enter().train(1)
    assert job.weights() == undisturbed.weights()


# ---- checkpoints and generations -------------------------------------------------------------------------------------


def test_each_epoch_is_saved_and_a_new_attempt_resumes_at_the_next(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/ckpt"
    whole = Job(checkpoint_url=url).enter().train(3)
    assert [text.partition(" in ")[0] for text in whole.worlds.told("checkpoint")] == [
        "saved epoch 0", "saved epoch 1", "saved epoch 2",
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "ckpt")
    Job(checkpoint_url=url).enter().train(2)
    resumed = Job(checkpoint_url=url).enter()
    assert resumed.worlds.told("resume") == ["resumed from a checkpoint at epoch 2"]
    assert (resumed.state.epoch, resumed.state.global_step) == (2, 6)
    assert resumed.train(3).weights() == whole.weights()


def test_a_damaged_newest_checkpoint_falls_back_and_is_told(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/ckpt"
    Job(checkpoint_url=url).enter().train(2)
    shards = sorted((tmp_path / "ckpt").rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    shards[-1].write_bytes(shards[-1].read_bytes()[:-1])
    job = Job(checkpoint_url=url).enter()
    assert job.state.epoch == 1
    (told,) = job.worlds.told("checkpoint")
    assert told.startswith("skipped checkpoint")
    assert job.worlds.told("resume") == ["resumed from a checkpoint at epoch 1"]


def test_a_lone_rank_that_is_torn_goes_back_to_its_checkpoint(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/ckpt"
    undisturbed = Job(optimizer=TornOnce).enter().train(2)
    job = Job(checkpoint_url=url, optimizer=TornOnce).enter().train(1)
    TornOnce.fail = True
    with pytest.raises(RuntimeError, match="torn"):
        job.train(2)
    job.state.leave_world()
    job.enter()
    assert (job.state.epoch, job.sampler.position) == (1, 0)
    assert job.train(2).weights() == undisturbed.weights()


def test_generations_rise_over_restarts_where_nobody_counts(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/ckpt"
    assert Job(checkpoint_url=url).enter().train(1).sampler.generation == 1
    assert Job(checkpoint_url=url).enter().train(2).sampler.generation == 2
    # Another cluster's driver counts from 1 again, too.
    assert Job(checkpoint_url=url, worlds=GivenWorlds(1)).enter().train(3).sampler.generation == 3


def test_the_generation_of_the_driver_is_taken_when_it_is_newer() -> None:
    job = Job(worlds=GivenWorlds(7)).enter()
    assert job.sampler.generation == 7
    job.worlds.generation = 8
    job.state.leave_world()
    assert job.enter().sampler.generation == 8
    resizes = [event.fields["generation"] for event in job.train(1).worlds.events if event.kind == "resize"]
    assert resizes == [8]


@pytest.mark.parametrize("name", ["epoch", "step", "workers", "samples_per_s", "kind", "text", "worker"])
def test_a_metric_may_not_take_the_name_of_a_field_of_ours(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=...\\) uses a name"):
        Job().enter().state.report(**{name: 1.0})


def test_the_last_report_of_an_epoch_has_its_metrics_and_its_end() -> None:
    job = Job().enter()
    for _ in job.state.epochs(1):
        for batch in job.state.batches(job.loader):
            job.step(batch)
        job.state.report(accuracy=0.5)
    last = job.worlds.reports[-1]
    assert (last.epoch, last.step, last.accuracy) == (1, 3, 0.5)
    assert last.loss is not None


def test_layers_may_be_frozen() -> None:
    job = Job()
    job.model.weight.requires_grad_(False)
    before = job.model.weight.clone()
    job.enter().train(1)
    assert torch.equal(job.model.weight, before)
    assert job.state.global_step == 3


def test_a_torn_state_without_a_checkpoint_is_not_trained_on() -> None:
    job = Job(optimizer=TornOnce).enter()
    TornOnce.fail = True
    with pytest.raises(RuntimeError, match="torn"):
        job.step(next(job.state.batches(job.loader)))
    job.state.leave_world()
    with pytest.raises(StateLost, match="there is no checkpoint"):
        job.enter()


def test_gradients_are_named_after_the_generation_so_that_none_is_taken_for_one_of_the_next() -> None:
    job = Job(worlds=GivenWorlds(7)).enter()
    left_over = hvd.allreduce_async(torch.full((1, 2), 1000.0), name="allreduce.7.weight")
    job.worlds.generation = 8
    job.state.leave_world()
    assert job.enter().train(1).weights() == Job().enter().train(1).weights()
    hvd.synchronize(left_over)
    names = job.state.optimizer._parameter_names  # type: ignore[attr-defined]
    assert set(names.values()) == {"8.weight", "8.bias"}
