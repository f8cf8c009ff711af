"""The shim with real processes: whichever of its three ends dies, nothing of the worker is left."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobclient import shim as shim_module
from jobclient.processes import Command, Process, exit_text, log_tail

pytestmark = pytest.mark.integration

SHIM = str(Path(shim_module.__file__))

#: a worker that starts a child in its group, one that leaves the group, and one whose parent is gone; prints all pids
FAMILY = """
import os, signal, subprocess, sys, time
sleep = [sys.executable, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
pids = [os.getpid(), subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
double = subprocess.run(["setsid", "sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True)
pids.append(int(double.stdout))
print(*pids, flush=True)
"""


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (a file has no event to wait for)
            await asyncio.sleep(0.01)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def parent_of(pid: int) -> int:
    return int(read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()[1])


class Family:
    """A process under a shim, the pids of its descendants, and what the shim said."""

    def __init__(self, tmp_path: Path, code: str) -> None:
        self.log = tmp_path / "w.log"
        self.changed = asyncio.Event()
        command = Command([sys.executable, "-c", FAMILY + code], dict(os.environ), tmp_path, self.log)
        self.process = Process(command, lambda _: self.changed.set())

    async def pids(self) -> list[int]:
        await until(lambda: read(self.log).endswith("\n"))
        return [int(word) for word in read(self.log).split("\n")[0].split()]


def alive(pids: list[int]) -> list[int]:
    """Those of `pids` that run (zombies do not)."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found.append(pid)
    return found


def all_dead_within(pids: list[int], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pids)


async def test_exit_code_arrives_and_descendants_of_every_kind_are_killed(tmp_path: Path) -> None:
    family = Family(tmp_path, "sys.exit(7)")
    pids = await family.pids()
    assert await family.process.exited == 7
    await family.process.gone
    assert not alive(pids)
    assert family.process.pid == pids[0]


async def test_killed_by_a_signal_is_negative(tmp_path: Path) -> None:
    family = Family(tmp_path, "time.sleep(600)")
    pids = await family.pids()
    os.kill(pids[0], signal.SIGKILL)
    assert await family.process.exited == -signal.SIGKILL
    await family.process.gone
    assert not alive(pids)
    assert exit_text(-signal.SIGKILL) == "killed by SIGKILL"


async def test_ladder_lets_a_worker_end_by_itself(tmp_path: Path) -> None:
    family = Family(tmp_path, "signal.signal(15, lambda *_: sys.exit(3))\nprint('ready', flush=True)\ntime.sleep(600)")
    pids = await family.pids()
    await until(lambda: "ready" in read(family.log))
    began = time.monotonic()
    family.process.stop(300.0)
    assert await family.process.exited == 3
    await family.process.gone
    assert time.monotonic() - began < 150  # its stubborn children did not hold it up until the deadline
    assert not alive(pids)


async def test_ladder_ends_with_sigkill_at_the_deadline(tmp_path: Path) -> None:
    family = Family(tmp_path, "signal.signal(15, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(600)")
    pids = await family.pids()
    await until(lambda: "ready" in read(family.log))
    began = time.monotonic()
    family.process.stop(0.3)
    assert await family.process.exited == -signal.SIGKILL
    assert time.monotonic() - began >= 0.3
    await family.process.gone
    assert not alive(pids)


async def test_stopped_worker_falls_to_the_ladder(tmp_path: Path) -> None:
    family = Family(tmp_path, "time.sleep(600)")
    pids = await family.pids()
    os.kill(pids[0], signal.SIGSTOP)
    family.process.stop(0.2)
    # Some kernels hold the SIGTERM of the ladder back until the worker continues, some deliver it.
    assert await family.process.exited in (-signal.SIGKILL, -signal.SIGTERM)
    await family.process.gone
    assert not alive(pids)


async def test_end_of_file_kills_all(tmp_path: Path) -> None:
    family = Family(tmp_path, "time.sleep(600)")
    pids = await family.pids()
    family.process.kill()
    assert await family.process.exited == -signal.SIGKILL
    await family.process.gone
    assert not alive(pids)


async def test_killed_shim_takes_the_group_along(tmp_path: Path) -> None:
    family = Family(tmp_path, "time.sleep(600)")
    pids = await family.pids()
    os.kill(parent_of(pids[0]), signal.SIGKILL)
    assert await family.process.exited == -signal.SIGKILL
    await family.process.gone
    try:
        assert all_dead_within(pids[:2], 5.0)  # what left the group is beyond reach once the subreaper is gone
    finally:
        for pid in alive(pids):
            os.kill(pid, signal.SIGKILL)


def test_worker_dies_with_its_shim_without_anybodys_help(tmp_path: Path) -> None:
    """As when the JobClient and the shim are killed at the same moment."""
    command = [sys.executable, "-I", "-S", SHIM, str(tmp_path / "w.log"), str(tmp_path), "sleep", "600"]
    shim = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert shim.stdout is not None
    pid = json.loads(shim.stdout.readline())["started"]
    assert alive([pid])
    shim.kill()
    assert all_dead_within([pid], 5.0)
    shim.communicate()


def test_killed_parent_leaves_nothing(tmp_path: Path) -> None:
    """SIGKILL of the process that holds the pipes, as when a JobClient is killed."""
    code = f"""
import asyncio, os, sys
from pathlib import Path
from jobclient import shim as shim_module
from jobclient.processes import Command, Process
async def run():
    command = Command([sys.executable, "-c", {FAMILY + "time.sleep(600)"!r}], dict(os.environ),
                      Path({str(tmp_path)!r}), Path({str(tmp_path / "w.log")!r}))
    await Process(command, lambda _: None).gone
asyncio.run(run())
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    log = tmp_path / "w.log"
    while not (log.exists() and log.read_text().endswith("\n")):
        time.sleep(0.01)
    pids = [int(word) for word in log.read_text().split()]
    assert alive(pids) == pids
    parent.kill()
    parent.wait()
    assert all_dead_within(pids, 5.0)


async def test_command_that_does_not_exist_is_a_sentence(tmp_path: Path) -> None:
    process = Process(Command(["no-such-command"], dict(os.environ), tmp_path, tmp_path / "w.log"), lambda _: None)
    assert await process.exited == 127
    await process.gone
    assert process.problem is not None
    assert "no-such-command" in process.problem
    assert "No such file" in process.problem


async def test_missing_directory_and_log_are_sentences(tmp_path: Path) -> None:
    for cwd, log in ((tmp_path / "none", tmp_path / "w.log"), (tmp_path, tmp_path / "none" / "w.log")):
        process = Process(Command(["true"], dict(os.environ), cwd, log), lambda _: None)
        assert await process.exited == 127
        await process.gone
        assert process.problem is not None
        assert str(tmp_path / "none") in process.problem


async def test_output_is_appended_and_its_tail_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "w.log"
    log.write_text("kept\n")
    code = "import sys\nfor i in range(30): print('line', i)\nprint('é' * 5000, file=sys.stderr)"
    process = Process(Command([sys.executable, "-c", code], dict(os.environ), tmp_path, log), lambda _: None)
    assert await process.exited == 0
    await process.gone
    text = log.read_text()
    assert text.startswith("kept\n")
    assert "line 29" in text
    assert 3500 < len(log_tail(log).encode()) <= 4096
    assert log_tail(log, lines=1, size_bytes=40000) == "é" * 5000
    assert log_tail(tmp_path / "none") == ""


async def test_a_worker_holds_none_of_the_shims_pipes(tmp_path: Path) -> None:
    log = tmp_path / "w.log"
    process = Process(Command(["ls", "-l", "/proc/self/fd"], dict(os.environ), tmp_path, log), lambda _: None)
    assert await process.exited == 0
    await process.gone
    assert "pipe:" not in read(log)
    assert "/dev/null" in read(log)
