"""edl drill in a short form, as a user runs it, and interrupted; and a job that is resized again and again.

A node that is cut off from the network is part of it where network namespaces can be made, and elsewhere not.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import soak
from cluster import ROOT

from jobserver.drill.network import missing
from jobserver.drill.tagged import processes_with

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

FAULTS = "driver,kill" if missing() else "driver,cut"
#: a slow machine is no failure; gloo's time-out and what follows it (15 s) still is one for a node that is cut off
SLACK = 5.0


@contextlib.contextmanager
def drill_into(folder: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """A drill that keeps its files in `folder`; told to end if it still runs when the block ends."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jobserver.cli.main", "drill", "--local", "--keep", str(folder), *options]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as drill:
        try:
            yield drill
        finally:
            if drill.poll() is None:
                drill.terminate()


def processes_of(folder: Path) -> list[psutil.Process]:
    """Those that were started by the drill that keeps its files there."""
    return processes_with("EDL_KEY_FILE", lambda path: path.startswith(str(folder)))


def test_a_drill_does_what_was_asked_and_tells_what_it_cost(tmp_path: Path) -> None:
    file, folder = tmp_path / "rows.json", tmp_path / "kept"
    with drill_into(
        folder, "--faults", FAULTS, "--workers", "2", "--slack", f"{SLACK:g}", "--json", str(file)
    ) as drill:
        output, _ = drill.communicate()
    assert drill.returncode == 0, output
    told = json.loads(file.read_text())
    assert (told["passed"], told["slack"]) == (True, SLACK)
    assert [row["fault"] for row in told["rows"]] == FAULTS.split(",")
    driver, lost = told["rows"]
    assert 0 < driver["resize_s"] <= driver["resize_limit_s"]
    for row in told["rows"]:
        assert row["passed"]
        assert 0 < row["pause_s"] <= row["pause_limit_s"]
        counts = ("lost_steps", "doubled_samples", "missing_samples", "unasked_worlds")
        assert [row[count] for count in counts] == [0, 0, 0, 0]
    if lost["fault"] == "cut":
        assert lost["pause_s"] > 1.0  # the session had to end: it was no mere restart of something
        assert lost["pause_limit_s"] == SLACK * (told["session_timeout_s"] + 1.0)
    assert list((folder / "logs").glob("*/*.log"))
    assert processes_of(folder) == []


def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with drill_into(folder, "--faults", "kill") as drill:
        deadline = time.monotonic() + 150
        while not (folder / "logs").exists():  # workers are being started
            assert time.monotonic() < deadline
            assert drill.poll() is None
            time.sleep(0.05)  # another process makes it, there is no event
        drill.send_signal(signal.SIGINT)
        output, _ = drill.communicate()
    assert drill.returncode == 130, output
    assert "nothing is left running" in output
    assert processes_of(folder) == []


@pytest.mark.long
def test_resizes_in_a_row_leak_nothing(tmp_path: Path) -> None:
    result = soak.resizes(8, tmp_path, print)
    assert result["passed"], json.dumps(result, indent=1)
    # What lives through it: two workers, the driver, two JobClients, the JobServer.
    assert {row["of"] for row in result["rows"]} == {"w1", "w2", "driver", "a", "b", "server", "cluster", "zookeeper"}
