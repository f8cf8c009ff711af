"""Loading into live objects: exactly, strictly or by name, and nothing before all of it was verified."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_faults import FaultDriver, outage
from checkpoint_memory import Counter, MemoryDriver, at, manager, newest

from checkpoints import (
    CheckpointDamaged,
    CheckpointManager,
    CheckpointMismatch,
    CheckpointNotFound,
    CheckpointUnavailable,
    Keep,
    RngState,
    TrainStatus,
    list_checkpoints,
    load_checkpoint,
)
from checkpoints.drivers import open_driver
from checkpoints.drivers.base import Entry


def training(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return {
        "model": model,
        "optimizer": optimizer,
        "schedule": torch.optim.lr_scheduler.StepLR(optimizer, 2),
        "scaler": torch.amp.GradScaler("cpu", init_scale=8.0),
        "rng": RngState(),
    }


def train(parts: dict[str, Any], steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        noise = random.random() + np.random.rand()
        loss = (parts["model"](torch.randn(6, 4)) + noise).square().mean()
        parts["optimizer"].zero_grad()
        parts["scaler"].scale(loss).backward()
        parts["scaler"].step(parts["optimizer"])
        parts["scaler"].update()
        parts["schedule"].step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("async_save", [True, False])
def test_training_goes_on_exactly_where_it_was_saved(tmp_path: Path, async_save: bool) -> None:
    with CheckpointManager(str(tmp_path), async_save=async_save) as checkpoints:
        parts = training(1)
        train(parts, 3)
        checkpoints.save(TrainStatus(global_step=3, user={"note": "x"}), **parts)
        expected = train(parts, 4)
        other = training(2)
        status = checkpoints.load(**other)
        assert status == TrainStatus(global_step=3, user={"note": "x"})
        assert train(other, 4) == expected


def test_other_ranks_draw_otherwise() -> None:
    draws = []
    saved = RngState(rank=0).state_dict()
    for rank in (0, 1, 2, 1):
        RngState(rank).load_state_dict(saved)
        draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert draws[1] == draws[3]
    assert len(set(draws)) == 3
    with pytest.raises(CheckpointMismatch, match="not a random state"):
        RngState().load_state_dict({"rank": 0})


def test_weights_alone_are_loaded_and_nothing_else_is_read(tmp_path: Path) -> None:
    driver = MemoryDriver()
    with manager(driver) as checkpoints:
        checkpoints.save(at(1), **training(1))
    driver.reads.clear()
    model = training(2)["model"]
    manager(driver).load(model=model)
    assert not [path for path in driver.reads if "optimizer" in path]
    assert torch.equal(model[0].weight, training(1)["model"][0].weight)


@pytest.mark.parametrize("local", [True, False], ids=["read twice", "read once"])
def test_loading_is_strict_unless_it_is_by_name(tmp_path: Path, local: bool, caplog: pytest.LogCaptureFixture) -> None:
    driver: Any = open_driver(str(tmp_path)) if local else MemoryDriver()
    with manager(driver) as checkpoints:
        checkpoints.save(at(1), model=training(1)["model"], counter=Counter(7))
        other: Any = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
        before = other[2].weight.clone()
        with pytest.raises(CheckpointMismatch, match=r"(?s)model: .*size mismatch"):
            checkpoints.load(model=other)
        with pytest.raises(CheckpointMismatch, match=r"has no schedule \(it has model, counter"):
            checkpoints.load(model=training(2)["model"], schedule=Counter())
        counter = Counter()
        status = checkpoints.load(strict=False, model=other, schedule=Counter(), counter=counter)
        assert status is not None
        assert counter.value == 7
        assert torch.equal(other[0].weight, training(1)["model"][0].weight)
        assert torch.equal(other[2].weight, before)
        assert "has no schedule" in caplog.text
        filled: dict[str, Any] = {"old": 1}
        checkpoints.load(counter=filled)
        assert set(filled) == {"weight"}
        with pytest.raises(CheckpointMismatch, match="no load_state_dict"):
            checkpoints.load(counter=3)


def test_no_object_is_touched_when_the_only_checkpoint_is_damaged(tmp_path: Path) -> None:
    with CheckpointManager(str(tmp_path)) as checkpoints:
        checkpoints.save(at(1), a=training(1)["model"], b=training(1)["model"])
    shard = next(tmp_path.glob("ckpt-*/b-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    one, two = training(2)["model"], training(2)["model"]
    with pytest.raises(CheckpointDamaged, match="checksum"):
        CheckpointManager(str(tmp_path)).load(a=one, b=two)
    for model in (one, two):
        assert torch.equal(model[0].weight, training(2)["model"][0].weight)


def test_a_module_that_loads_in_its_own_way_is_asked_to(tmp_path: Path) -> None:
    class Own(torch.nn.Linear):
        loaded = 0

        def get_extra_state(self) -> dict[str, int]:
            return {"version": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.loaded = state["version"]

    model = Own(2, 2)
    with CheckpointManager(str(tmp_path)) as checkpoints:
        checkpoints.save(at(1), model=model)
        other = Own(2, 2)
        checkpoints.load(model=other)
    assert other.loaded == 3
    assert torch.equal(model.weight, other.weight)


def test_tied_and_strided_weights_are_loaded_in_place(tmp_path: Path) -> None:
    def tied() -> torch.nn.Module:
        model = torch.nn.ModuleDict({"one": torch.nn.Linear(3, 3), "two": torch.nn.Linear(3, 3)})
        model["two"].weight = model["one"].weight
        model["conv"] = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    model, other = tied(), tied()
    with CheckpointManager(str(tmp_path)) as checkpoints:
        checkpoints.save(at(1), model=model)
        checkpoints.load(model=other)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_after_an_older_one_was_loaded_what_is_saved_is_the_newest() -> None:
    driver = MemoryDriver()
    with manager(driver, keep=None) as checkpoints:
        for step in (100, 200, 300):
            checkpoints.save(at(step), counter=Counter(step))
        counter = Counter()
        status = checkpoints.load(checkpoint_no=1, counter=counter)
        assert status is not None
        assert (status.global_step, counter.value) == (100, 100)
        checkpoints.save(at(150), counter=Counter(150))
    assert newest(driver) == (150, 150)
    with pytest.raises(CheckpointNotFound, match="no checkpoint 9"):
        manager(driver).load(checkpoint_no=9)


def test_a_saver_of_an_earlier_run_never_wins_over_one_that_resumed() -> None:
    driver = MemoryDriver()
    zombie = manager(driver)
    zombie.save(at(10), counter=Counter(10))
    zombie.wait()
    with manager(driver) as successor:
        successor.load(counter=Counter())
        successor.save(at(11), counter=Counter(11))
    zombie.save(at(500), counter=Counter(500))
    zombie.close()
    assert newest(driver) == (11, 11)


def test_two_savers_at_once_leave_whole_checkpoints_of_which_one_wins(tmp_path: Path) -> None:
    savers = [CheckpointManager(str(tmp_path), keep=2) for _ in range(2)]
    for step in range(1, 6):
        for value, saver in enumerate(savers):
            saver.save(at(step), counter=Counter(value), other=Counter(value))
    for saver in savers:
        saver.close()
    for info in list_checkpoints(str(tmp_path)):
        one, two = Counter(-1), Counter(-1)
        CheckpointManager(str(tmp_path)).load(checkpoint_no=info.number, counter=one, other=two)
        assert one.value == two.value
    latest = CheckpointManager(str(tmp_path)).latest()
    assert latest is not None
    assert latest.global_step == 5


def test_the_wall_clock_orders_nothing() -> None:
    driver = MemoryDriver()
    for step in range(1, 4):
        early = datetime(2026, 1, 1, tzinfo=UTC) - timedelta(days=step)
        with manager(driver, now=lambda early=early: early) as checkpoints:
            checkpoints.save(at(step), counter=Counter(step))
    assert newest(driver) == (3, 3)
    found = list_checkpoints("folder", driver=driver)
    assert [info.created for info in found] == sorted(info.created for info in found)


def test_latest_and_load_of_an_empty_folder_and_of_an_outage(tmp_path: Path) -> None:
    checkpoints = CheckpointManager(str(tmp_path / "none"))
    assert checkpoints.latest() is None
    assert checkpoints.load(counter=Counter()) is None
    away = manager(FaultDriver(MemoryDriver(), 0, error=outage, lasting=True))
    with pytest.raises(CheckpointUnavailable):
        away.latest()
    with pytest.raises(CheckpointUnavailable):
        away.load(counter=Counter())


def test_rules_of_retention_are_taken() -> None:
    driver = MemoryDriver()
    with manager(driver, keep=Keep(1, best=1, metric="accuracy")) as checkpoints:
        for step, accuracy in enumerate([0.1, 0.9, 0.5, 0.2]):
            checkpoints.save(TrainStatus(global_step=step, user={"accuracy": accuracy}), counter=Counter(step))
    assert [info.global_step for info in list_checkpoints("folder", driver=driver)] == [3, 1]


@pytest.mark.parametrize("options", [{"keep": 0}, {"driver_epoch": -1}, {"when_busy": "drop"}])
def test_wrong_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        manager(MemoryDriver(), **options)


class Collected(MemoryDriver):
    """Between the listing of the folder and the first look into it, another process saves and collects."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def list_dir(self, path: str) -> list[Entry]:
        if path and self.left:
            self.left -= 1
            before, self.left = self.left, 0
            with manager(self, keep=1) as other:
                other.save(at(100 - before), counter=Counter(100 - before))
            self.left = before
        return super().list_dir(path)


@pytest.mark.parametrize("way", ["load", "latest", "load_checkpoint"])
def test_a_folder_whose_checkpoints_are_collected_meanwhile_is_not_taken_for_empty(way: str) -> None:
    driver = Collected(0)
    with manager(driver, keep=1) as saver:
        saver.save(at(1), counter=Counter(1))
    driver.left = 2
    if way == "load":
        assert newest(driver) == (100, 100)
    elif way == "latest":
        latest = manager(driver).latest()
        assert latest is not None
        assert latest.global_step == 100
    else:
        loaded = load_checkpoint("folder", driver=driver)
        assert loaded is not None
        assert loaded.status.global_step == 100
