"""The folders in memory that a JobClient gives its jobs: whose they are, and that none outlives its job or node."""

import fcntl
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from jobclient import held_folders
from jobclient.held_folders import HeldFolders


def base(memory: Path) -> Path:
    """The one folder of this user."""
    (found,) = memory.iterdir()
    return found


def test_only_this_user_can_enter(tmp_path: Path) -> None:
    folder = HeldFolders("n", tmp_path).folder("j", 1.5)
    assert folder is not None
    for path in (folder, folder.parent, folder.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_job_keeps_its_folder_and_one_of_the_same_name_gets_another(tmp_path: Path) -> None:
    folders = HeldFolders("n", tmp_path)
    first, again, later = folders.folder("j", 1.5), folders.folder("j", 1.5), folders.folder("j", 2.5)
    assert first == again
    assert first != later


def test_the_folder_goes_with_its_job(tmp_path: Path) -> None:
    folders = HeldFolders("n", tmp_path)
    first, second = folders.folder("j", 1.5), folders.folder("k", 1.5)
    assert first is not None
    assert second is not None
    (first / "held-1-2-3").write_text("x")
    folders.keep({("k", 1.5)})
    folders._remover.shutdown()
    assert (first.exists(), second.exists()) == (False, True)


def test_nothing_is_left_after_close(tmp_path: Path) -> None:
    folders = HeldFolders("n", tmp_path)
    folders.folder("j", 1.5)
    folders.close()
    assert not list(base(tmp_path).iterdir())


def test_nothing_is_made_before_a_job_needs_it(tmp_path: Path) -> None:
    HeldFolders("n", tmp_path).close()
    assert not list(tmp_path.iterdir())


def test_what_a_dead_jobclient_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    living = HeldFolders("living", tmp_path)
    kept = living.folder("j", 1.5)
    assert kept is not None
    left = base(tmp_path) / "1-dead" / "j-1.500000"
    left.mkdir(parents=True)
    (left / "held-1-2-3").write_text("x")
    other = HeldFolders("other", tmp_path)
    other.folder("j", 1.5)
    other.close()
    assert kept.exists()
    assert list(base(tmp_path).iterdir()) == [kept.parent]


def test_one_whose_process_had_our_id_is_removed_too(tmp_path: Path) -> None:
    folders = HeldFolders("n", tmp_path)
    left = tmp_path / f"edl-{os.getuid()}" / f"{os.getpid()}-n" / "j-1.500000" / "held-1-2-3"
    left.parent.mkdir(parents=True, mode=0o700)
    left.parents[2].chmod(0o700)
    left.touch()
    assert folders.folder("j", 1.5) == left.parent
    assert not left.exists()


def test_what_is_no_folder_is_left_alone(tmp_path: Path) -> None:
    HeldFolders("n", tmp_path).folder("j", 1.5)
    (base(tmp_path) / "a-file").touch()
    assert HeldFolders("other", tmp_path).folder("j", 1.5) is not None
    assert (base(tmp_path) / "a-file").exists()


def test_a_long_removal_makes_nobody_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, rmtree = threading.Event(), shutil.rmtree

    def slow(path: Path, **options: Any) -> None:
        assert go_on.wait(10)
        rmtree(path, **options)

    HeldFolders("n", tmp_path).folder("j", 1.5)
    (base(tmp_path) / "1-dead").mkdir()
    monkeypatch.setattr(shutil, "rmtree", slow)
    sweeps, other = HeldFolders("sweeps", tmp_path), HeldFolders("other", tmp_path)
    folder = sweeps.folder("j", 1.5)
    sweeps.keep(())
    assert other.folder("j", 1.5) is not None
    assert folder is not None
    assert folder.exists()
    go_on.set()
    sweeps.close()
    assert not folder.exists()
    assert not list(base(tmp_path).glob("dead-*"))


def test_a_lock_that_stays_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(held_folders, "LOCK_WAIT_S", 0.1)
    folders = HeldFolders("n", tmp_path)
    ours = tmp_path / f"edl-{os.getuid()}"
    ours.mkdir(mode=0o700)
    lock = os.open(ours, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert folders.folder("j", 1.5) is None
    assert "has locked" in caplog.text
    os.close(lock)
    assert folders.folder("j", 1.5) is not None


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    HeldFolders("n", tmp_path).folder("j", 1.5)
    base(tmp_path).chmod(0o755)
    assert HeldFolders("other", tmp_path).folder("j", 1.5) is None
    assert "must be a directory of this user with mode 0700" in caplog.text


def test_without_shared_memory_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert HeldFolders("n", tmp_path / "no-such").folder("j", 1.5) is None
    assert "its state is not held in memory" in caplog.text


def test_what_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folders = HeldFolders("n", tmp_path)
    folder = folders.folder("j", 1.0)
    assert folder is not None
    (folder / "state").touch()

    def refuse(*_args: Any, **_options: Any) -> None:
        raise PermissionError("not permitted")

    monkeypatch.setattr(os, "unlink", refuse)
    folders.keep(())
    folders.close()
    assert f"{folder / 'state'} stays in memory: not permitted" in caplog.text
