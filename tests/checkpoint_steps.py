"""Checkpoints whose state tells their step, for tests of what becomes of a folder of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from checkpoints import CheckpointInfo, LoadedCheckpoint, TrainStatus, load_checkpoint, save_checkpoint

SHARD = "model-00000-of-00001.safetensors"


def save(url: str, step: int, driver: Any = None, **options: Any) -> CheckpointInfo:
    """A checkpoint whose state tells its step."""
    state = {"model": {"w": torch.full((100,), step)}, "optimizer": {"step": step}}
    info = save_checkpoint(url, TrainStatus(global_step=step), state=state, driver=driver, **options)
    assert info is not None
    return info


def newest(url: str) -> LoadedCheckpoint:
    """The newest valid one, checked to be whole."""
    loaded = load_checkpoint(url)
    assert loaded is not None
    step = loaded.status.global_step
    assert torch.equal(loaded.state["model"]["w"], torch.full((100,), step))
    assert loaded.state["optimizer"] == {"step": step}
    return loaded


def truncate(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[:-1])


def flip(folder: Path) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[-5] ^= 1
    (folder / SHARD).write_bytes(data)
