"""A real HDFS that is restarted, full, or reads back only in parts; and writers that slept too long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_faults import FaultDriver

from checkpoints import (
    CheckpointError,
    CheckpointLeaseLost,
    CheckpointPermission,
    CheckpointQuota,
    CheckpointUnavailable,
    TrainStatus,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    verify,
)
from checkpoints.drivers import Driver, open_driver
from checkpoints.drivers.base import CHUNK_BYTES
from checkpoints.drivers.hdfs_native import HdfsNativeDriver

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
DRIVERS = ("hdfs-native", "webhdfs", "libhdfs")


@pytest.fixture(scope="module")
def cluster(new_hdfs: Callable[..., Any], libhdfs: None) -> Any:
    """A cluster that lists four names at a time; each test leaves all of it serving."""
    return new_hdfs(settings={"dfs.ls.limit": 4})


def url_of(cluster: Any, kind: str, folder: str, options: str = "") -> str:
    """The same folder through one driver."""
    if kind == "webhdfs":
        return f"{cluster.webhdfs_url}/{folder}{'?' if options else ''}{options}"
    return f"{cluster.url}/{folder}?driver={kind}{'&' if options else ''}{options}"


def save(url: str, step: int, driver: Any = None, size: int = 100, retry_s: float = 60.0, **options: Any) -> None:
    state = {"model": {"w": torch.full((size,), step)}}
    save_checkpoint(url, TrainStatus(global_step=step), state=state, driver=driver, retry_s=retry_s, **options)


def newest(url: str) -> int:
    """Step of the newest valid checkpoint, checked to be whole."""
    loaded = load_checkpoint(url)
    assert loaded is not None
    assert bool((loaded.state["model"]["w"] == loaded.status.global_step).all())
    return loaded.status.global_step


class At(FaultDriver):
    """Does something before the first operation whose name begins with `operation`, and goes on."""

    def __init__(self, inner: Driver, operation: str, action: Callable[[], None]) -> None:
        super().__init__(inner)
        self._operation = operation
        self._action: Callable[[], None] | None = action

    def step(self, name: str, effect: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        if self._action is not None and name.startswith(self._operation):
            action, self._action = self._action, None
            action()
        return super().step(name, effect, half)


def test_a_listing_of_many_pages_is_whole(cluster: Any) -> None:
    for step in range(6):
        save(url_of(cluster, "hdfs-native", "pages"), step, keep=None)
    for kind in DRIVERS:
        assert [info.global_step for info in list_checkpoints(url_of(cluster, kind, "pages"))] == [5, 4, 3, 2, 1, 0]


def test_a_listing_that_breaks_off_is_an_outage(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page comes, then the NameNode dies: what came is never taken for the whole."""
    import hdfs_native

    url = url_of(cluster, "hdfs-native", "pages")
    whole = hdfs_native.Client.list_status

    def broken(client: Any, path: str, recursive: bool = False) -> Iterator[Any]:
        for index, status in enumerate(whole(client, path, recursive)):
            if index == 2:
                cluster.kill_namenode()
            yield status

    monkeypatch.setattr(hdfs_native.Client, "list_status", broken)
    try:
        with pytest.raises(CheckpointUnavailable):
            list_checkpoints(url)
    finally:
        monkeypatch.undo()
        cluster.restart_namenode()
    assert len(list_checkpoints(url)) == 6


@pytest.mark.parametrize("kind", ["hdfs-native", "libhdfs"])
def test_a_namenode_that_dies_in_a_save_and_comes_back(cluster: Any, kind: str) -> None:
    url = url_of(cluster, kind, f"restart-{kind}")
    save(url, 1)
    driver = At(open_driver(url), "write ", cluster.kill_namenode)
    try:
        with pytest.raises(CheckpointUnavailable):
            save(url, 2, driver, size=3 * CHUNK_BYTES // 4)
    finally:
        driver.close()
        cluster.restart_namenode()
    assert newest(url) == 1
    save(url, 3)
    assert newest(url) == 3
    assert all(info.problem is None or info.condition.value == "unfinished" for info in verify(url))


def test_a_restart_of_the_namenode_in_a_save_is_survived_or_told(cluster: Any) -> None:
    url = url_of(cluster, "hdfs-native", "restarted")
    save(url, 1)
    driver = At(open_driver(url), "write ", cluster.restart_namenode)
    try:
        save(url, 2, driver, size=3 * CHUNK_BYTES // 4)
        expected = 2
    except CheckpointUnavailable:
        expected = 1
    driver.close()
    assert newest(url) == expected
    save(url, 3)
    assert newest(url) == 3


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_load_survives_the_death_of_a_datanode_in_its_middle(cluster: Any, kind: str) -> None:
    url = url_of(cluster, kind, f"reading-{kind}", "block_size=1m&timeout=20")
    save(url, 1, size=3_000_000)  # 12 MB of float32: twelve blocks
    killed: list[int] = []

    def kill() -> None:
        killed.append(1)
        cluster.kill_datanode(1)

    inner = open_driver(url)
    driver = KillInMidRead(inner, kill)
    try:
        loaded = load_checkpoint(url, driver=driver)
    finally:
        inner.close()
        cluster.restart_datanode(1)
    assert killed
    assert loaded is not None
    assert loaded.skipped == ()
    assert bool((loaded.state["model"]["w"] == 1).all())


class KillInMidRead(FaultDriver):
    """Kills something when the first megabytes of a shard were read."""

    def __init__(self, inner: Driver, kill: Callable[[], None]) -> None:
        super().__init__(inner)
        self._kill = kill

    def open_read(self, path: str) -> Any:
        reader = super().open_read(path)
        return _DyingReader(reader, self._kill) if path.endswith(".safetensors") else reader


class _DyingReader:
    def __init__(self, inner: Any, kill: Callable[[], None]) -> None:
        self._inner = inner
        self._kill: Callable[[], None] | None = kill
        self._read_bytes = 0

    def readinto(self, buffer: memoryview) -> int:
        if self._kill is not None and self._read_bytes > 2_000_000:
            kill, self._kill = self._kill, None
            kill()
        count: int = self._inner.readinto(buffer[: 1 << 20])
        self._read_bytes += count
        return count

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_quota_of_names_is_told_as_one(cluster: Any, kind: str) -> None:
    if kind == DRIVERS[0]:
        open_driver(f"{cluster.url}/names").make_dirs("")
        cluster.set_quota("/names", names=5)
        save(f"{cluster.url}/names", 1)  # folder, attempt, shard, manifest: four and the one that is renamed
    url = url_of(cluster, kind, "names")
    with pytest.raises(CheckpointQuota, match="quota"):
        save(url, 2, retry_s=1)
    assert newest(url) == 1


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_quota_of_space_is_told(cluster: Any, kind: str) -> None:
    if kind == DRIVERS[0]:
        open_driver(f"{cluster.url}/space").make_dirs("")
        cluster.set_quota("/space", space_bytes=8 << 20)
        save(f"{cluster.url}/space?block_size=1m", 1)
    url = url_of(cluster, kind, "space", "block_size=1m")
    with pytest.raises(CheckpointError) as raised:
        save(url, 2, size=3_000_000, retry_s=1)  # 12 MB, twice
    # libhdfs has no number for it and no words: what it is called is all that it can be.
    assert isinstance(raised.value, CheckpointUnavailable if kind == "libhdfs" else CheckpointQuota)
    assert "quota" in str(raised.value).lower()
    assert newest(url) == 1


def test_another_users_folder_is_refused_through_libhdfs(cluster: Any) -> None:
    save(url_of(cluster, "hdfs-native", "mine"), 1)
    url = url_of(cluster, "libhdfs", "mine", "user=somebody_else")
    with pytest.raises(CheckpointPermission, match="access"):
        save(url, 2)
    assert newest(url) == 1  # reading is allowed


@pytest.mark.parametrize("kind", DRIVERS)
def test_the_namenode_that_serves_is_found_among_several(cluster: Any, kind: str) -> None:
    live = (cluster.webhdfs_url if kind == "webhdfs" else cluster.url).rpartition("/")[2]
    scheme = "webhdfs" if kind == "webhdfs" else "hdfs"
    options = "replication=1&block_size=1m&timeout=20" + ("" if kind == "webhdfs" else f"&driver={kind}")
    url = f"{scheme}://127.0.0.1:1,{live}/several-{kind}?{options}"  # nobody listens on port 1
    save(url, 1, size=400_000)
    assert newest(url) == 1
    plain = HdfsNativeDriver(f"{cluster.url}/several-{kind}")
    attempt = next(entry.name for entry in plain.list_dir("") if entry.is_dir)
    status = plain._here().get_file_info(f"/several-{kind}/{attempt}/model-00000-of-00001.safetensors")
    assert (status.replication, status.blocksize) == (1, 1 << 20)


@pytest.mark.parametrize("kind", ["hdfs-native", "libhdfs"])
def test_the_configuration_of_the_site_is_read(cluster: Any, kind: str) -> None:
    script = "import sys\nfrom checkpoints import preflight\npreflight(sys.argv[1])\nprint('good')\n"
    done = subprocess.run(
        [sys.executable, "-c", script, f"hdfs:///conf-{kind}?driver={kind}"],
        env={**os.environ, "HADOOP_CONF_DIR": str(cluster.base_dir / "conf/namenode")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "good", done.stderr
    assert HdfsNativeDriver(f"{cluster.url}/conf-{kind}").list_dir("") == []


def test_a_jvm_leaves_the_signals_to_python(cluster: Any) -> None:
    script = (
        "import os, signal, sys\n"
        "from checkpoints import list_checkpoints\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "list_checkpoints(sys.argv[1])\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "signal.pause()\n"
    )
    url = url_of(cluster, "libhdfs", "signals")
    done = subprocess.run([sys.executable, "-c", script, url], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 7


FROZEN = """
import sys
import torch
from checkpoint_faults import FaultDriver
from checkpoints import TrainStatus, save_checkpoint
from checkpoints.drivers import open_driver

class Pausing(FaultDriver):
    def step(self, name, effect, half=lambda: None):
        if name.startswith("write ") and sum(done.startswith("write ") for done in self.operations) == 2:
            print(name.split()[1], flush=True)
            sys.stdin.readline()
        return super().step(name, effect, half)

url = sys.argv[1]
state = {"model": {"w": torch.full((4_000_000,), 2)}}
save_checkpoint(url, TrainStatus(global_step=2), state=state, driver=Pausing(open_driver(url)), retry_s=5)
"""


@pytest.mark.parametrize(
    ("kind", "how"), [("hdfs-native", "recovered"), ("hdfs-native", "removed"), ("libhdfs", "recovered")]
)
def test_a_writer_frozen_past_its_lease_loses_to_the_one_who_took_over(cluster: Any, kind: str, how: str) -> None:
    url = url_of(cluster, kind, f"frozen-{kind}-{how}", "replication=2&timeout=5")
    plain = url_of(cluster, "hdfs-native", f"frozen-{kind}-{how}")
    save(plain, 1)
    with subprocess.Popen(
        [sys.executable, "-c", FROZEN, url],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        shard = writer.stdout.readline().strip()
        assert shard.endswith(".safetensors"), writer.communicate()[1]
        writer.send_signal(signal.SIGSTOP)
        other = HdfsNativeDriver(plain)
        if how == "recovered":
            other._here().recover_lease(f"/frozen-{kind}-{how}/{shard}")
        else:
            other.remove_tree(shard.rpartition("/")[0])
        save(plain, 3, driver=other)
        other.close()
        writer.send_signal(signal.SIGCONT)
        _, said = writer.communicate("go on\n", timeout=60)
    assert writer.returncode == 1
    assert CheckpointLeaseLost.__name__ in said.strip().splitlines()[-1]
    assert newest(plain) == 3
    assert [info.global_step for info in list_checkpoints(plain) if info.problem is None] == [3, 1]
