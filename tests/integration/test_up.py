"""edl up as a process: everything comes up, a job runs on it, and nothing is left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 60.0


def until(condition: Callable[[], object], timeout_s: float = READY_TIMEOUT_S) -> None:
    """Wait for a state of other processes; there is no event to wait for across them."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the expected state was not reached"
        time.sleep(0.05)


class Up:
    """One `edl up`, and the command line that talks to it."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.output = folder / "up.log"
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "EDL_KEY_FILE": str(folder / "key")}
        self.environment |= {"EDL_SERVER": f"{'https' if '--tls' in options else 'http'}://127.0.0.1:{port}"}
        command = [sys.executable, "-m", "jobserver.cli.main", "up", "--server-port", str(port)]
        command += ["--data-dir", str(folder / "data"), "--log-dir", str(folder / "logs"), *options]
        with self.output.open("wb") as output:
            self.child = subprocess.Popen(command, stdout=output, stderr=output, env=self.environment, cwd=folder)

    def wait_ready(self) -> None:
        until(lambda: "ready" in self.output.read_text() or self.child.poll() is not None)
        assert self.child.poll() is None, self.output.read_text()

    def processes(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.child.pid).children(recursive=True)
        return found

    def edl(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "jobserver.cli.main", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=self.environment, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout


Start = Callable[..., Up]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Up] = []

    def begin(*options: str) -> Up:
        started.append(Up(tmp_path, *options))
        return started[-1]

    yield begin
    for up in started:
        if up.child.poll() is None:
            up.child.send_signal(signal.SIGINT)
        up.child.wait(90)


@pytest.mark.integration
def test_a_job_runs_and_ctrl_c_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    up = start("--nodes", "2", "--slots", "1")
    up.wait_ready()
    up.edl("submit", "--name", "j", "--np", "2", "--max-np", "2", "--", sys.executable, "-c", "print('it runs')")
    until(lambda: "succeeded" in up.edl("ps"))
    assert "it runs" in up.edl("logs", "j", "w1")
    up.edl("submit", "--name", "long", "--np", "2", "--max-np", "2", "--", "sleep", "1000")
    until(lambda: sum(p.name() == "sleep" for p in up.processes()) == 2)
    processes = up.processes()
    up.child.send_signal(signal.SIGINT)
    assert up.child.wait(90) == 0, up.output.read_text()
    assert [p for p in processes if p.is_running()] == []
    lines = up.output.read_text().splitlines()
    assert lines[-4:] == ["stopping", "stopped     jobserver", "stopped     node-1", "stopped     node-2"]


@pytest.mark.integration
def test_with_tls_too_kill_9_of_edl_up_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    up = start("--slots", "1", "--tls", "on")
    up.wait_ready()
    url = up.environment["EDL_SERVER"]
    assert f"elsewhere   export EDL_SERVER={url}" in up.output.read_text()
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{url}/api/v1/health", trust_env=False)
    (tmp_path / "other-key").write_text("another cluster's key, of enough bytes")
    (tmp_path / "other-key").chmod(0o600)
    with pytest.raises(AssertionError, match="certificate"):
        up.edl("ps", "--key-file", str(tmp_path / "other-key"))
    up.edl("submit", "--name", "long", "--", "sleep", "1000")
    until(lambda: any(p.name() == "sleep" for p in up.processes()))
    assert up.edl("logs", "long", "w1") == ""  # from the JobClient, which speaks TLS as well
    processes = up.processes()
    up.child.kill()
    up.child.wait()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes))


@pytest.mark.integration
def test_a_taken_port_is_one_clear_message(start: Start) -> None:
    first = start("--slots", "1")
    first.wait_ready()
    port = first.environment["EDL_SERVER"].rsplit(":", 1)[1]
    other = start("--server-port", port, "--data-dir", str(first.output.parent / "other"))
    assert other.child.wait(60) == 2
    text = other.output.read_text()
    assert f"--server-port {port} cannot be listened on: Address already in use" in text
    assert "Traceback" not in text
