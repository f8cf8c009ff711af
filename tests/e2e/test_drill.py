"""edl drill in a short form, as a user runs it, and interrupted; and a job that is resized again and again.

A node that is cut off from the network is part of it where network namespaces can be made, and elsewhere not.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import soak
from cluster import ROOT

from jobserver.drill.network import missing

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

FAULTS = "driver,kill" if missing() else "driver,cut"


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jobserver.cli.main", "drill", "--local", "--keep", str(folder), *options]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Those that were started by the drill that keeps its files there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("EDL_KEY_FILE", "").startswith(str(folder)):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def test_a_drill_does_what_was_asked_and_tells_what_it_cost(tmp_path: Path) -> None:
    file, folder = tmp_path / "rows.json", tmp_path / "kept"
    drill = start(folder, "--faults", FAULTS, "--workers", "2", "--json", str(file))
    output, _ = drill.communicate(timeout=110)
    assert drill.returncode == 0, output
    told = json.loads(file.read_text())
    assert told["passed"]
    assert [row["fault"] for row in told["rows"]] == FAULTS.split(",")
    driver, lost = told["rows"]
    assert 0 < driver["resize_s"] <= driver["resize_limit_s"]
    for row in told["rows"]:
        assert row["passed"]
        assert 0 < row["pause_s"] <= row["pause_limit_s"]
        assert (row["lost_steps"], row["doubled_samples"], row["missing_samples"]) == (0, 0, 0)
    if lost["fault"] == "cut":
        assert lost["pause_s"] > 1.0  # the session had to end: it was no mere restart of something
        assert lost["pause_limit_s"] == told["session_timeout_s"] + 1.0
    assert list((folder / "logs").glob("*/*.log"))
    assert processes_of(folder) == []


def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    drill = start(folder, "--faults", "kill")
    deadline = time.monotonic() + 60
    while not (folder / "logs").exists():  # workers are being started
        assert time.monotonic() < deadline
        assert drill.poll() is None
        time.sleep(0.05)  # another process makes it, there is no event
    drill.send_signal(signal.SIGINT)
    output, _ = drill.communicate(timeout=40)
    assert drill.returncode == 130, output
    assert "nothing is left running" in output
    assert processes_of(folder) == []


def test_resizes_in_a_row_leak_nothing(tmp_path: Path) -> None:
    result = soak.resizes(8, tmp_path, print)
    assert result["passed"], json.dumps(result, indent=1)
    # What lives through it: two workers, the driver, two JobClients, the JobServer.
    assert {row["of"] for row in result["rows"]} == {"w1", "w2", "driver", "a", "b", "server", "cluster", "zookeeper"}
