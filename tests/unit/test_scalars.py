"""Curves: what is written can be read by TensorBoard, and what cannot be written disturbs nobody."""

import logging
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edl_collective.scalars import Scalars


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_what_is_known_is_written_at_once(tmp_path: Path) -> None:
    scalars = Scalars(str(tmp_path))
    scalars.add(10, {"epoch/loss": 0.5, "epoch/accuracy": None})
    scalars.add(20, {"epoch/loss": 0.25})
    assert curve(tmp_path, "epoch/loss") == [(10, 0.5), (20, 0.25)]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Scalars("").add(1, {"x": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    scalars = Scalars(str(tmp_path / "file" / "below"))
    with caplog.at_level(logging.WARNING):
        scalars.add(1, {"x": 1.0})
        scalars.add(2, {"x": 1.0})
    assert caplog.text.count("no curves are written") == 1


def test_a_missing_package_names_the_extra(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING):
        Scalars(str(tmp_path)).add(1, {"x": 1.0})
    assert "edl-elastic[tensorboard]" in caplog.text
