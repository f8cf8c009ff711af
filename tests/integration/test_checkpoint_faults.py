"""Crashes, outages and full disks: a save that fails costs that save alone, and an outage is an outage."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_faults import Crash, FaultDriver, outage
from checkpoint_steps import newest, save

from checkpoints import CheckpointUnavailable, list_checkpoints, load_checkpoint, verify
from checkpoints.drivers import open_driver


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


def test_a_first_save_that_never_finished_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        save(str(tmp_path), 1, FaultDriver(open_driver(str(tmp_path)), 5))
    assert load_checkpoint(str(tmp_path)) is None
    assert [info.condition.value for info in list_checkpoints(str(tmp_path))] == ["unfinished"]


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
