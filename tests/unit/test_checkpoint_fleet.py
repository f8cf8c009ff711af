"""Paddle EDL's names and arguments mean what its users know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import (
    CheckpointNotFound,
    CheckpointUnsupported,
    HDFSClient,
    LocalFS,
    TrainStatus,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from checkpoints.fleet import place


def test_a_paddle_edl_training_loop_runs(tmp_path: Path) -> None:
    path, fs, model = str(tmp_path / "fleet"), LocalFS(), torch.nn.Linear(2, 2)
    seen = []
    for _attempt in range(2):
        loaded = load_checkpoint(path=path, trainer_id=0, fs=fs, ignore_empty=True)
        status = TrainStatus(epoch_no=-1) if loaded is None else loaded.status
        if loaded is not None:
            model.load_state_dict(loaded.state["model"])
        for epoch in range(status.next(), status.next() + 2):
            seen.append(epoch)
            now = TrainStatus(epoch_no=epoch, global_step=epoch)
            for trainer_id in (0, 1):
                saved = save_checkpoint(
                    path=path,
                    trainer_id=trainer_id,
                    train_status=now,
                    fs=fs,
                    state={"model": model},
                    remain_all_checkpoint=False,
                    keep=1,
                )
                assert (saved is None) == (trainer_id != 0)
    assert seen == [0, 1, 2, 3]
    assert [info.number for info in list_checkpoints(path)] == [4]
    save_checkpoint(path, TrainStatus(epoch_no=4, global_step=4), state={}, remain_all_checkpoint=True, keep=1)
    assert [info.number for info in list_checkpoints(path)] == [5, 4]
    older = load_checkpoint(path=path, checkpoint_no=4)
    assert older is not None
    assert older.status == TrainStatus(epoch_no=3, global_step=3)


def test_an_empty_folder_is_ignored_or_not(tmp_path: Path) -> None:
    assert load_checkpoint(str(tmp_path)) is None
    with pytest.raises(CheckpointNotFound, match="trainer 3: there is no checkpoint"):
        load_checkpoint(path=str(tmp_path), trainer_id=3, ignore_empty=False)


CONFIGS = {"fs.default.name": "hdfs://host:9000", "hadoop.job.ugi": "me,secret"}


@pytest.mark.parametrize(
    ("arguments", "url", "driver"),
    [
        (("/a", None, None, None), "/a", None),
        (("/a", LocalFS(), None, None), "/a", None),
        (("hdfs://h:1/a", "libhdfs", None, None), "hdfs://h:1/a", "libhdfs"),
        (("/a", None, "hdfs://h:1", None), "hdfs://h:1/a", None),
        (("/a", None, "hdfs://h:1/", "me,secret"), "hdfs://me@h:1/a", None),
        (("/a/b", HDFSClient("/opt/hadoop", CONFIGS), None, None), "hdfs://me@host:9000/a/b", None),
        (("hdfs://h:1/a", HDFSClient(), None, "me"), "hdfs://me@h:1/a", None),
        (("hdfs://me@h:1/a", HDFSClient(), None, "me"), "hdfs://me@h:1/a", None),
    ],
)
def test_a_file_system_says_where_a_path_lies(arguments: Any, url: str, driver: str | None) -> None:
    assert place(*arguments) == (url, driver)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("/a", HDFSClient(), None, None), "fs.default.name"),
        (("/a", LocalFS(), "hdfs://h:1", None), "leave one out"),
        (("hdfs://h:1/a", LocalFS(), None, None), "leave one out"),
        (("/a", None, None, "me"), "give hdfs_name"),
        (("hdfs://you@h:1/a", None, None, "me"), "asks for the user me"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments: Any, said: str) -> None:
    with pytest.raises(CheckpointUnsupported, match=said):
        place(*arguments)
