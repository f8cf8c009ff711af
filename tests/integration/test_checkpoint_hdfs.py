"""Checkpoints on a real HDFS whose parts die: errors within seconds, nothing lost, and saves survive a DataNode."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_faults import FaultDriver

from checkpoints import (
    CheckpointError,
    CheckpointPermission,
    CheckpointTimeout,
    CheckpointUnavailable,
    TrainStatus,
    list_checkpoints,
    load_checkpoint,
    preflight,
    save_checkpoint,
)
from checkpoints.drivers import open_driver
from checkpoints.drivers.hdfs_native import HdfsNativeDriver

pytestmark = pytest.mark.integration


def save(url: str, step: int, driver: Any = None, size: int = 100) -> None:
    save_checkpoint(
        url, TrainStatus(global_step=step), state={"model": {"w": torch.full((size,), step)}}, driver=driver
    )


@pytest.fixture(scope="module")
def frail(new_hdfs: Callable[..., Any], libhdfs: None) -> Any:
    """A cluster whose parts may be killed; each test leaves the NameNode serving."""
    return new_hdfs()


def urls(cluster: Any, name: str) -> dict[str, str]:
    plain = f"{cluster.url}/{name}"
    return {"hdfs": plain, "webhdfs": f"{cluster.webhdfs_url}/{name}", "libhdfs": f"{plain}?driver=libhdfs"}


def test_safe_mode_is_an_outage_and_reading_still_works(frail: Any) -> None:
    every = urls(frail, "safe")
    save(every["hdfs"], 1)
    frail.set_safe_mode(True)
    try:
        for url in every.values():
            with pytest.raises(CheckpointUnavailable, match=r"afe ?[mM]ode"):
                save(url, 2)
            loaded = load_checkpoint(url)
            assert loaded is not None
            assert loaded.status.global_step == 1
    finally:
        frail.set_safe_mode(False)
    save(every["webhdfs"], 2)
    assert [info.global_step for info in list_checkpoints(every["hdfs"])] == [2, 1]


def test_a_dead_namenode_is_an_outage_within_seconds(frail: Any) -> None:
    every = urls(frail, "dead")
    save(every["hdfs"], 1)
    frail.kill_namenode()
    try:
        for url in every.values():
            for ask in (load_checkpoint, list_checkpoints, preflight, lambda url: save(url, 2)):
                begun = time.monotonic()
                with pytest.raises(CheckpointUnavailable):
                    ask(url)
                assert time.monotonic() - begun < 15
    finally:
        frail.restart_namenode()
    assert [info.global_step for info in list_checkpoints(every["hdfs"])] == [1]


@pytest.mark.parametrize("kind", ["hdfs", "webhdfs", "libhdfs"])
def test_a_silent_namenode_is_a_timeout(frail: Any, kind: str) -> None:
    url = urls(frail, "silent")[kind]
    with closing(open_driver(url)) as patient:  # for what is not tested here
        patient.make_dirs("")
    driver = open_driver(f"{url}{'&' if '?' in url else '?'}timeout=1")
    process = frail._namenode.process
    process.send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(CheckpointTimeout):
            load_checkpoint(url, driver=driver)
        assert time.monotonic() - begun < 15
    finally:
        process.send_signal(signal.SIGCONT)
    driver.close()
    assert load_checkpoint(url) is None


class KillInMidWrite(FaultDriver):
    """Kills something before the n-th operation, and goes on."""

    def __init__(self, inner: Any, at: int, kill: Callable[[], None]) -> None:
        super().__init__(inner)
        self._at = at
        self._kill = kill

    def step(self, name: str, effect: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        if len(self.operations) == self._at:
            assert name.startswith("write ")
            self._kill()
        return super().step(name, effect, half)


def test_a_save_survives_the_death_of_a_datanode_in_its_middle(frail: Any) -> None:
    url = urls(frail, "datanode")["hdfs"]
    save(url, 1)
    # The client sometimes waits for ever on the dead one; the call's timeout turns that into another try.
    driver = KillInMidWrite(HdfsNativeDriver(url, call_timeout_s=5.0), 5, lambda: frail.kill_datanode(0))
    save(url, 2, driver, size=6_000_000)  # 24 MB of float32 are six chunks
    loaded = load_checkpoint(url)
    assert loaded is not None
    assert loaded.skipped == ()
    assert torch.equal(loaded.state["model"]["w"], torch.full((6_000_000,), 2))


def test_another_users_folder_is_refused_in_one_sentence(hdfs: Any, tmp_path: Path) -> None:
    driver = HdfsNativeDriver(hdfs.url)
    driver.make_dirs("private")
    driver.close()
    script = "import sys, checkpoints\ncheckpoints.preflight(sys.argv[1])"
    for url in list(urls(hdfs, "private/job").values())[:2]:
        done = subprocess.run(
            [sys.executable, "-c", script, url],
            env={**os.environ, "HADOOP_USER_NAME": "somebody_else"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stderr.strip().splitlines()[-1]
        assert CheckpointPermission.__name__ in said
        assert url in said
        assert "HADOOP_USER_NAME" in said


def test_a_saver_killed_at_any_moment_leaves_the_previous(hdfs_url: str) -> None:
    """SIGKILL of a real process, at moments spread over its saves."""
    script = (
        "import sys, torch\n"
        "from checkpoints import TrainStatus, save_checkpoint\n"
        "for step in range(1, 1000):\n"
        "    state = {'model': {'w': torch.full((1_000_000,), step)}, 'optimizer': {'step': step}}\n"
        "    save_checkpoint(sys.argv[1], TrainStatus(global_step=step), state=state, driver_epoch=int(sys.argv[2]))\n"
        "    print(step, flush=True)\n"
    )
    for life, wait_s in enumerate((0.02, 0.1)):
        with subprocess.Popen(
            [sys.executable, "-c", script, hdfs_url, str(life)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        ) as saver:
            assert saver.stdout is not None
            assert saver.stdout.readline() == "1\n"
            last = int(saver.stdout.readline())
            time.sleep(wait_s)  # the moment of death is the point here, not a condition to wait for
            saver.kill()
            last = max([last, *map(int, saver.stdout.read().split())])
        loaded = load_checkpoint(hdfs_url)
        assert loaded is not None
        assert loaded.info.driver_epoch == life
        assert loaded.status.global_step in (last, last + 1)
        assert torch.equal(loaded.state["model"]["w"], torch.full((1_000_000,), loaded.status.global_step))
        assert loaded.state["optimizer"] == {"step": loaded.status.global_step}
    save(hdfs_url, 5000)  # of driver epoch 0: older than all of them
    assert len([info for info in list_checkpoints(hdfs_url) if info.problem is None]) >= 3


def test_a_name_that_no_configuration_explains_is_said() -> None:
    with pytest.raises(CheckpointError, match="HADOOP_CONF_DIR"):
        preflight("hdfs://nosuchservice/path")
