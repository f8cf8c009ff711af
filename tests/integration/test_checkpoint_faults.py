"""Crashes and damage: the newest valid checkpoint is found, nothing half is ever chosen, an outage is an outage."""

from __future__ import annotations

import errno
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_faults import Crash, FaultDriver, outage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints import (
    CheckpointDamaged,
    CheckpointError,
    CheckpointExists,
    CheckpointInfo,
    CheckpointNotFound,
    CheckpointPermission,
    CheckpointUnavailable,
    CheckpointUnsupported,
    LoadedCheckpoint,
    TrainStatus,
    collect,
    list_checkpoints,
    load_checkpoint,
    pin,
    preflight,
    save_checkpoint,
    unpin,
    verify,
)
from checkpoints.drivers import open_driver
from checkpoints.drivers.base import Entry

SHARD = "model-00000-of-00001.safetensors"


def save(url: str, step: int, driver: Any = None, **options: Any) -> CheckpointInfo:
    """A checkpoint whose state tells its step."""
    state = {"model": {"w": torch.full((100,), step)}, "optimizer": {"step": step}}
    info: CheckpointInfo = save_checkpoint(url, TrainStatus(global_step=step), state=state, driver=driver, **options)
    return info


def newest(url: str) -> LoadedCheckpoint:
    """The newest valid one, checked to be whole."""
    loaded = load_checkpoint(url)
    assert loaded is not None
    step = loaded.status.global_step
    assert torch.equal(loaded.state["model"]["w"], torch.full((100,), step))
    assert loaded.state["optimizer"] == {"step": step}
    return loaded


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_step_of_a_save_loses_only_that_save(tmp_path: Path, after: bool) -> None:
    committed = 0
    for fail_at in range(200):
        url = str(tmp_path / f"{fail_at}")
        save(url, 1, keep=2)
        save(url, 2, keep=2)
        driver = FaultDriver(open_driver(url), fail_at, after)
        try:
            save(url, 3, driver, keep=2)
            finished = True
        except Crash:
            finished = False
        manifest_written = any(name.startswith("write_once") for name in driver.operations[: fail_at + after])
        loaded = newest(url)
        assert loaded.status.global_step == (3 if manifest_written else 2), driver.operations[-1]
        committed += manifest_written
        assert all(info.condition.value != "damaged" for info in list_checkpoints(url)), driver.operations[-1]
        save(url, 4, keep=2)  # the next save works, and clears away what the dead one left
        assert [info.global_step for info in list_checkpoints(url)][:1] == [4]
        assert all(info.problem is None for info in verify(url))
        if finished:
            break
    assert finished
    assert fail_at > 15
    assert committed > 3


@pytest.mark.parametrize("operation", ["list", "info", "open"])
def test_an_outage_while_loading_is_never_no_checkpoint(tmp_path: Path, operation: str) -> None:
    url = str(tmp_path)
    save(url, 1)
    save(url, 2)
    clean = FaultDriver(open_driver(url))
    assert load_checkpoint(url, driver=clean) is not None
    places = [n for n, name in enumerate(clean.operations) if name.startswith(operation)]
    assert places or operation == "info"
    for fail_at in places:
        with pytest.raises(CheckpointUnavailable):
            load_checkpoint(url, driver=FaultDriver(open_driver(url), fail_at, error=outage))


def test_an_outage_while_saving_is_raised_and_the_previous_stays(tmp_path: Path) -> None:
    url = str(tmp_path)
    save(url, 1)
    clean = FaultDriver(open_driver(str(tmp_path / "elsewhere")))
    save(str(tmp_path / "elsewhere"), 1, clean)
    last = next(n for n, name in enumerate(clean.operations) if name.startswith("write_once"))
    for fail_at in range(last + 1):
        driver = FaultDriver(open_driver(url), fail_at, error=outage, lasting=True)
        with pytest.raises(CheckpointUnavailable):
            save(url, 2, driver)
        assert newest(url).status.global_step == 1


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("operation", ["info", "write", "commit", "write_once"])
def test_a_file_that_fails_while_the_file_system_answers_is_written_again(
    tmp_path: Path, operation: str, after: bool, caplog: pytest.LogCaptureFixture
) -> None:
    url = str(tmp_path / "job")
    clean = FaultDriver(open_driver(str(tmp_path / "elsewhere")))
    save(str(tmp_path / "elsewhere"), 1, clean)
    fail_at = next(n for n, name in enumerate(clean.operations) if name.startswith(f"{operation} ckpt"))
    with caplog.at_level(logging.WARNING):
        save(url, 2, FaultDriver(open_driver(url), fail_at, after, error=outage))
    assert "writing again" in caplog.text
    assert newest(url).status.global_step == 2
    assert [info.problem for info in verify(url)] == [None]


def test_writing_again_ends(tmp_path: Path) -> None:
    clean = FaultDriver(open_driver(str(tmp_path / "elsewhere")))
    save(str(tmp_path / "elsewhere"), 1, clean)
    fail_at = next(n for n, name in enumerate(clean.operations) if name.startswith("commit"))
    with pytest.raises(CheckpointUnavailable):
        save(str(tmp_path), 2, FaultDriver(open_driver(str(tmp_path)), fail_at, error=outage), retry_s=0)


def test_failing_to_collect_does_not_fail_the_save(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = str(tmp_path)
    save(url, 1, keep=1)
    clean = FaultDriver(open_driver(url))
    save(url, 2, clean, keep=1)
    removal = next(n for n, name in enumerate(clean.operations) if name.startswith("remove ckpt"))
    with caplog.at_level(logging.WARNING):
        info = save(url, 3, FaultDriver(open_driver(url), removal, error=outage), keep=1)
    assert info.number == 3
    assert "could not remove older checkpoints" in caplog.text
    assert newest(url).status.global_step == 3


def truncate(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[:-1])


def flip(folder: Path) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[-5] ^= 1
    (folder / SHARD).write_bytes(data)


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


def test_a_first_save_that_never_finished_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        save(str(tmp_path), 1, FaultDriver(open_driver(str(tmp_path)), 5))
    assert load_checkpoint(str(tmp_path)) is None
    assert [info.condition.value for info in list_checkpoints(str(tmp_path))] == ["unfinished"]


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


def test_retention_keeps_n_and_none_keeps_all(tmp_path: Path) -> None:
    for step in range(5):
        save(str(tmp_path), step, keep=None)
    assert [info.number for info in list_checkpoints(str(tmp_path))] == [5, 4, 3, 2, 1]
    save(str(tmp_path), 5, keep=1)
    assert [info.number for info in list_checkpoints(str(tmp_path))] == [6]


def test_a_number_that_is_not_there_is_said(tmp_path: Path) -> None:
    save(str(tmp_path), 1)
    for ask in (load_checkpoint, verify):
        with pytest.raises(CheckpointNotFound, match="no checkpoint 9"):
            ask(str(tmp_path), checkpoint_no=9)


@pytest.mark.parametrize("options", [{"keep": 0}, {"driver_epoch": -1}])
def test_wrong_options_are_refused_before_anything_is_written(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        save(str(tmp_path / "new"), 1, **options)
    assert not (tmp_path / "new").exists()


def test_preflight_names_the_url_and_the_knob(tmp_path: Path) -> None:
    preflight(str(tmp_path / "deep" / "folder"))
    assert list((tmp_path / "deep" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError) as raised:
        preflight(str(tmp_path / "file"))
    assert str(tmp_path / "file") in str(raised.value)
    assert "EDL_CHECKPOINT_PATH" in str(raised.value)
    with pytest.raises(CheckpointPermission, match="MY_KNOB"):
        preflight(
            "/proc/nothing/here", driver=FaultDriver(open_driver(str(tmp_path)), 1, error=no_right), knob="MY_KNOB"
        )


def no_right() -> BaseException:
    return CheckpointPermission("not yours")


@pytest.mark.parametrize(
    ("url", "driver", "said"),
    [
        ("", None, "URL is empty"),
        ("nosuchscheme://x/y", None, "nosuchscheme"),
        ("file://host/path", None, "names a host"),
        ("webhdfs:///path", None, "no host"),
        ("/tmp/x", "nosuchdriver", "choose one of file, hdfs-native, libhdfs, hdfs3, webhdfs, fsspec"),
    ],
)
def test_an_url_that_no_driver_serves_gets_one_sentence(url: str, driver: str | None, said: str) -> None:
    with pytest.raises(CheckpointUnsupported, match=said):
        preflight(url, driver=driver)


@pytest.mark.parametrize(
    ("package", "url", "extra"),
    [("hdfs_native", "hdfs://h:1/x", "hdfs"), ("fsspec.implementations.webhdfs", "webhdfs://h:1/x", "webhdfs")],
)
def test_a_missing_package_is_named(package: str, url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(CheckpointUnsupported, match=rf"pip install 'edl-elastic\[{extra}\]'"):
        load_checkpoint(url)


def test_a_disk_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr("os.link", refuse)
    save(str(tmp_path), 1)
    assert newest(str(tmp_path)).status.global_step == 1
    driver = open_driver(str(tmp_path))
    with pytest.raises(CheckpointExists):
        driver.write_once(f"{newest(str(tmp_path)).info.name}/manifest.json", b"second")
    assert newest(str(tmp_path)).skipped == ()


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


def test_pins_hold_until_they_are_taken_away(tmp_path: Path) -> None:
    url = str(tmp_path)
    save(url, 1)
    assert pin(url, 1) == pin(url, 1) == list_checkpoints(url)[0].name
    for step in (2, 3, 4):
        save(url, step, keep=2)
    assert [(info.number, info.pinned) for info in list_checkpoints(url)] == [(4, False), (3, False), (1, True)]
    assert collect(url, 1) == collect(url, 1)
    assert [item.attempt.number for item in collect(url, 1, dry_run=False)] == [3]
    unpin(url, list_checkpoints(url)[-1].name)
    assert [item.attempt.number for item in collect(url, 1, dry_run=False)] == [1]
    for wrong in (9, "ckpt-00000009-e0-s9-0123456789ab", "notes"):
        with pytest.raises(CheckpointNotFound, match="there is no checkpoint"):
            pin(url, wrong)
    (tmp_path / save(url, 5).name / "manifest.json").unlink()
    with pytest.raises(CheckpointDamaged, match="cannot be pinned"):
        pin(url, 5)


SMALL_DISK = """
import resource, subprocess, sys
import torch
from checkpoints import CheckpointQuota, TrainStatus, load_checkpoint, save_checkpoint

folder = sys.argv[1]
small = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder]
if subprocess.run(small, capture_output=True, check=False).returncode != 0:
    # Nobody may mount here: files that may not grow say nearly the same.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))
url = f"{folder}/run"
save_checkpoint(url, TrainStatus(global_step=1), state={"model": {"w": torch.ones(1000)}})
try:
    save_checkpoint(url, TrainStatus(global_step=2), state={"model": {"w": torch.ones(2_000_000)}})
except CheckpointQuota as error:
    print(error)
assert load_checkpoint(url).status.global_step == 1
save_checkpoint(url, TrainStatus(global_step=3), state={"model": {"w": torch.ones(1000)}})
assert load_checkpoint(url).status.global_step == 3
"""


@pytest.mark.integration
def test_a_full_disk_is_told_and_costs_one_save(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SMALL_DISK, str(tmp_path)]
    apart = ["unshare", "--map-root-user", "--mount", *command]  # mounts of its own, which end with it
    for attempt in (apart, command):
        done = subprocess.run(attempt, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
        if "unshare" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    assert "free space" in done.stdout
