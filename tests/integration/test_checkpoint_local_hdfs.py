"""The local HDFS itself: nothing outlives it, and its cache is not believed without a look."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from checkpoints import preflight

SCRIPT = Path(__file__).parents[2] / "scripts" / "local_hdfs.py"


def children(pid: int) -> list[int]:
    """Process ids of the direct children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.integration
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_server_outlives_the_command(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, str(SCRIPT), "up", "--dir", str(tmp_path / "hdfs"), "--datanodes", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as up:
        assert up.stdout is not None
        try:
            url, webhdfs_url = up.stdout.readline().strip(), up.stdout.readline().strip()
            servers = children(up.pid)
            assert len(servers) == 2
            preflight(f"{url}/job")
            preflight(f"{webhdfs_url}/job")
        finally:
            os.kill(up.pid, how)
        code = up.wait(60)
    assert code == (0 if how == signal.SIGTERM else -signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(map(runs, servers)):
        assert time.monotonic() < deadline, "a server is still running"
        time.sleep(0.05)


@pytest.fixture
def jars_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("hadoop_jars")


def test_an_altered_or_missing_jar_is_noticed(tmp_path: Path, jars_module: Any) -> None:
    names = [*jars_module.SPARK_JARS, *jars_module.DEBIAN_JARS]
    for name in names:
        (tmp_path / name).write_text(name)
    assert not jars_module._is_complete(tmp_path)
    sums = {name: jars_module.sha256(tmp_path / name) for name in names}
    (tmp_path / "SHA256.json").write_text(json.dumps(sums))
    assert jars_module._is_complete(tmp_path)
    (tmp_path / names[0]).write_text("altered")
    assert not jars_module._is_complete(tmp_path)
    (tmp_path / names[0]).unlink()
    assert not jars_module._is_complete(tmp_path)
