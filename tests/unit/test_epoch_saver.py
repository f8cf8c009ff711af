"""Epochs are saved beside the training; what people are told is durable, and a failed save does not pass unseen."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from checkpoints import CheckpointError, CheckpointQuota, TrainStatus, list_checkpoints
from checkpoints.drivers.local import LocalDriver
from edl_collective.batches import ElasticBatchSampler
from edl_collective.epoch_saver import EpochSaver
from edl_collective.errors import AgentLost
from edl_collective.messages import Happened, Report
from edl_collective.phases import Phases
from edl_collective.reporter import Reporter
from edl_collective.scaling import TotalBatch

GENEROUS_S = 60.0


class Heard(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def saved(self, status: TrainStatus, seconds: float, blocked_s: float) -> None:
        assert 0 <= blocked_s <= seconds
        self.events.append(f"saved {status.epoch_no}")

    def not_saved(self, epoch: int, why: str) -> None:
        self.events.append(f"not saved {epoch}: {why}")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Local files are begun when it is set."""
    event = threading.Event()
    begin = LocalDriver.open_write

    def wait(self: LocalDriver, path: str) -> Any:
        assert event.wait(GENEROUS_S)
        return begin(self, path)

    monkeypatch.setattr(LocalDriver, "open_write", wait)
    return event


def status(epoch: int) -> TrainStatus:
    return TrainStatus(epoch_no=epoch, global_step=10 * epoch)


def test_the_end_of_an_epoch_is_told_when_it_is_durable(tmp_path: Path, gate: threading.Event) -> None:
    reporter = Heard()
    saver = EpochSaver(str(tmp_path), 3, reporter)
    saver.save(status(0), {"state": {"a": 1}}, 1, lambda: reporter.events.append("epoch 0"))
    assert reporter.events == []
    gate.set()
    saver.finish()
    assert reporter.events == ["saved 0", "epoch 0"]
    assert list_checkpoints(str(tmp_path))[0].driver_epoch == 1


def test_a_failed_save_is_told_at_once_and_raised_at_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = Heard()
    saver = EpochSaver(str(tmp_path), 3, reporter)
    full = CheckpointQuota("the disk is full")

    def refuse(*_: object) -> None:
        raise full

    monkeypatch.setattr(LocalDriver, "open_write", refuse)
    saver.save(status(0), {"state": {"a": 1}}, 1, lambda: reporter.events.append("epoch 0"))
    with pytest.raises(CheckpointQuota, match=r"step 0 was not saved.*the disk is full"):
        saver.save(status(1), {"state": {"a": 1}}, 1, lambda: None)
    told, epoch = reporter.events
    assert told.startswith("not saved 0: the checkpoint of step 0 was not saved")
    assert epoch == "epoch 0"


def test_going_back_waits_for_the_save_in_flight(tmp_path: Path, gate: threading.Event) -> None:
    saver = EpochSaver(str(tmp_path), 3, Heard())
    saver.save(status(4), {"state": {"a": 1}}, 1, lambda: None)
    threading.Timer(0.1, gate.set).start()
    loaded = saver.resume()
    assert loaded is not None
    assert loaded.status.epoch_no == 4


def test_a_worker_whose_agent_is_gone_saves_all_the_same(tmp_path: Path) -> None:
    def nobody_listens() -> None:
        raise AgentLost("/socket")

    saver = EpochSaver(str(tmp_path), 3, Heard())
    saver.save(status(2), {"state": {"a": 1}}, 0, nobody_listens)
    saver.finish()
    assert [info.status for info in list_checkpoints(str(tmp_path))] == [status(2)]


def test_a_mistake_in_the_saving_thread_is_raised_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(LocalDriver, "make_dirs", fail)
    saver = EpochSaver(str(tmp_path), 3, Heard())
    saver.save(status(0), {"state": {"a": 1}}, 0, lambda: None)
    with pytest.raises(CheckpointError, match="a bug"):
        saver.finish()


class Hears:
    """The worlds of a process, of which a reporter wants only these."""

    driver_epoch = 0
    cause = "test"
    phases = Phases(time.monotonic)

    def __init__(self) -> None:
        self.events: list[Happened] = []
        self.reports: list[Report] = []

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def happened(self, event: Happened) -> None:
        self.events.append(event)


def test_a_failed_save_stays_in_the_jobs_status_until_one_succeeds() -> None:
    reporter, heard = Reporter(), Hears()
    reporter.join(heard, 0, 1)  # type: ignore[arg-type]
    reporter.enter(1, 0)
    sampler = ElasticBatchSampler(10, TotalBatch(4))

    def message() -> str:
        reporter.epoch_done(0, sampler)
        return heard.reports[-1].message

    assert message() == ""
    reporter.not_saved(3, "the disk is full " * 1000)
    assert message().startswith("the disk is full")
    assert len(message()) < 500
    reporter.saved(status(4), 1.0, 0.5)
    assert message() == ""
    assert [event.fields["outcome"] for event in heard.events if event.kind == "checkpoint"] == ["failed", "saved"]
