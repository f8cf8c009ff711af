"""Damage and foreign files: the newest valid checkpoint is found, and nothing half is ever chosen."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_faults import FaultDriver
from checkpoint_steps import SHARD, flip, newest, save, truncate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints import CheckpointDamaged, list_checkpoints, load_checkpoint, verify
from checkpoints.drivers import open_driver
from checkpoints.drivers.base import Entry

DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated shard": (truncate, "bytes instead of"),
    "missing shard": (lambda folder: (folder / SHARD).unlink(), "is missing"),
    "wrong checksum": (flip, "does not match its checksum"),
    "empty manifest": (lambda folder: (folder / "manifest.json").write_bytes(b""), "not JSON"),
    "foreign manifest": (lambda folder: (folder / "manifest.json").write_text("{}"), "not a manifest"),
    "binary manifest": (lambda folder: (folder / "manifest.json").write_bytes(bytes(range(256))), "not JSON"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "did not finish"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_leads_to_the_previous_and_is_named(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    url = str(tmp_path)
    damage, said = DAMAGE[kind]
    save(url, 1)
    save(url, 2)
    bad = save(url, 3)
    damage(tmp_path / bad.name)
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    (tmp_path / "__paddle_checkpoint__.9").mkdir()
    with caplog.at_level(logging.WARNING):
        loaded = newest(url)
    assert loaded.status.global_step == 2
    assert [(skip.name, said in skip.reason) for skip in loaded.skipped] == [(bad.name, True)]
    assert bad.name in caplog.text
    assert [info.problem is None for info in verify(url)] == [False, True, True]
    with pytest.raises(CheckpointDamaged, match="checkpoint 3"):
        load_checkpoint(url, checkpoint_no=3)
    older = load_checkpoint(url, checkpoint_no=1)
    assert older is not None
    assert older.status.global_step == 1
    save(url, 4)
    assert newest(url).status.global_step == 4
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "__paddle_checkpoint__.9").exists()


def test_when_all_are_damaged_training_does_not_silently_start_over(tmp_path: Path) -> None:
    url = str(tmp_path)
    for step in (1, 2):
        flip(tmp_path / save(url, step).name)
    with pytest.raises(CheckpointDamaged, match="none of the 2 checkpoints"):
        load_checkpoint(url)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_random_corruption_loads_wrong(tmp_path: Path, data: st.DataObject) -> None:
    source = tmp_path / "good"
    if not source.exists():
        save(str(source), 1)
        save(str(source), 2)
    folder = tmp_path / "bad"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    attempt = max(folder.iterdir())
    victim = data.draw(st.sampled_from(sorted(file.name for file in attempt.iterdir())))
    content = bytearray((attempt / victim).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    (attempt / victim).write_bytes(content)
    loaded = newest(str(folder))
    assert loaded.status.global_step == (1 if loaded.skipped else 2)


def test_a_zombie_never_becomes_the_newest(tmp_path: Path) -> None:
    url = str(tmp_path)
    save(url, 10, driver_epoch=2, keep=2)
    save(url, 500, driver_epoch=1, keep=2)
    assert newest(url).status.global_step == 10
    save(url, 11, driver_epoch=2, keep=2)
    assert [(info.driver_epoch, info.global_step) for info in list_checkpoints(url)] == [(2, 11), (2, 10)]


def test_a_folder_in_the_manifests_place_is_no_checkpoint(tmp_path: Path) -> None:
    save(str(tmp_path), 1)
    folder = tmp_path / save(str(tmp_path), 2).name / "manifest.json"
    folder.unlink()
    folder.mkdir()
    assert newest(str(tmp_path)).status.global_step == 1


class PartialDriver(FaultDriver):
    """Its listings of the folder leave out what an object store may not show yet."""

    hidden: frozenset[str] = frozenset()

    def list_dir(self, path: str) -> list[Entry]:
        return [entry for entry in super().list_dir(path) if entry.name not in self.hidden]


def test_a_checkpoint_that_a_listing_leaves_out_is_found_by_the_hint(tmp_path: Path) -> None:
    url = str(tmp_path)
    save(url, 1)
    driver = PartialDriver(open_driver(url))
    driver.hidden = frozenset({save(url, 2).name, "LATEST"})
    loaded = load_checkpoint(url, driver=driver)
    assert loaded is not None
    assert loaded.status.global_step == 2


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"notes", b"../../etc/passwd\n", b"x" * 1000])
def test_the_hint_is_never_trusted(tmp_path: Path, content: bytes) -> None:
    url = str(tmp_path)
    save(url, 1)
    gone = save(url, 3)
    shutil.rmtree(tmp_path / gone.name)
    assert newest(url).skipped == ()
    assert newest(url).status.global_step == 1
    (tmp_path / "LATEST").write_bytes(content)
    assert newest(url).skipped == ()
    save(url, 2)
    assert (tmp_path / "LATEST").read_text().startswith("ckpt-00000002-e0-s2-")


def test_the_hint_does_not_move_back(tmp_path: Path) -> None:
    url = str(tmp_path)
    newer = save(url, 5, driver_epoch=1)
    save(url, 900)
    assert (tmp_path / "LATEST").read_text() == f"{newer.name}\n"
