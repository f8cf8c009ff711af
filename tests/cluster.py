"""A whole cluster on this machine for end-to-end tests: ZooKeeper, JobServer and JobClients as real processes.

Every process carries a tag in its environment; `close` proves that none is left.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from zookeeper_gate import ZooKeeperGate

from edl_collective.coord.auth import ClusterKey
from jobserver.local_zookeeper import LocalZooKeeper

ROOT = Path(__file__).resolve().parent.parent
TINY_JOB = ROOT / "tests" / "jobs" / "tiny.py"
TAG = "EDL_TEST_TAG"

Json = dict[str, Any]


class Cluster:
    """Start with `start()`, add nodes with `add_node(name)`; everything ends with `close()`."""

    def __init__(self, base: Path, *, environ: dict[str, str] | None = None) -> None:
        self.base = base
        self.tag = uuid.uuid4().hex
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._key_path = base / "key"
        key = ClusterKey(os.urandom(32))
        self._key_path.write_text(key.secret.hex() + "\n")
        self._key_path.chmod(0o600)
        self.zookeeper = LocalZooKeeper(base / "zookeeper")
        self.gate: ZooKeeperGate | None = None
        self.port = _free_port()
        self.environ = {
            **os.environ,
            TAG: self.tag,
            "EDL_KEY_FILE": str(self._key_path),
            "PYTHONPATH": str(ROOT),
            "EDL_SERVER": f"http://127.0.0.1:{self.port}",
            **(environ or {}),
        }
        self.api = httpx.Client(base_url=self.environ["EDL_SERVER"], timeout=20)

    def start(self, *, server_options: tuple[str, ...] = (), gated: bool = False) -> "Cluster":
        """`gated`: everybody reaches ZooKeeper through `gate`, which tests can shut."""
        from edl_collective.coord.key_file import load_or_create_key

        hosts = self.zookeeper.start()
        if gated:
            self.gate = ZooKeeperGate(hosts)
            hosts = self.gate.hosts
        self.environ["EDL_ZOOKEEPER"] = hosts
        self.api.headers["Authorization"] = f"Bearer {load_or_create_key(self._key_path).api_token}"
        self.start_server(*server_options)
        return self

    def start_server(self, *options: str) -> None:
        self._spawn("server", [sys.executable, "-m", "jobserver", "--server_port", str(self.port), *options])
        self.wait(self._serves, 20, "the JobServer answers")

    def add_node(self, node: str, *, slots: int = 1, options: tuple[str, ...] = ()) -> None:
        command = [sys.executable, "-m", "jobclient", "--node", node, "--slots", str(slots), "--session-timeout", "4"]
        command += ["--log-dir", str(self.base / "logs"), "--work-dir", str(self.base), *options]
        self._spawn(node, command)
        self.wait(lambda: node in {n["node"] for n in self.get("/nodes")["nodes"]}, 20, f"node {node} is registered")

    def submit(self, job: str, *args: str, program: Path = TINY_JOB, record_dir: str = "records", **spec: Any) -> None:
        command = [sys.executable, str(program), "--record_dir", str(self.base / record_dir), *args]
        answer = self.api.post("/api/v1/jobs", json={"job": job, "command": command, **spec})
        assert answer.status_code == 201, answer.text

    def get(self, path: str) -> Json:
        answer = self.api.get(f"/api/v1{path}")
        assert answer.status_code == 200, answer.text
        value: Json = answer.json()
        return value

    def post(self, path: str, body: Json | None = None) -> Json:
        answer = self.api.post(f"/api/v1{path}", json=body)
        assert answer.status_code == 200, answer.text
        value: Json = answer.json()
        return value

    def job(self, job: str) -> Json:
        return self.get(f"/jobs/{job}")

    def events(self, job: str, kind: str) -> list[Json]:
        """Fields and text of the job's events of one kind, oldest first."""
        return [event for event in self.get(f"/jobs/{job}/events")["events"] if event["kind"] == kind]

    def running(self, job: str) -> list[Json]:
        """The job's workers that are in the present world, oldest first."""
        workers = [w for w in self.job(job)["worker_records"] if w["state"] == "running"]
        return sorted(workers, key=lambda w: int(w["worker"][1:]))

    def wait_for_world(self, job: str, size: int, timeout_s: float = 60) -> None:
        """Until a world of `size` workers is the newest and has completed a step."""

        def trains() -> bool:
            detail = self.job(job)
            world, progress = detail["rendezvous"], detail["progress"]
            planned = {row[0] for row in (detail["plan"] or {"workers": []})["workers"]}
            members = {row[0] for row in world["members"]} if world else set()
            return (
                len(members) == size
                and members == planned
                and progress is not None
                and progress["generation"] == world["generation"]
            )

        self.wait(trains, timeout_s, f"{size} workers of {job} train", job)

    def wait_for_phase(self, job: str, phase: str, timeout_s: float = 90) -> None:
        self.wait(lambda: self.job(job)["phase"] == phase, timeout_s, f"{job} is {phase}", job)

    def wait(self, condition: Callable[[], object], timeout_s: float, what: str, job: str | None = None) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"after {timeout_s:g} s not true: {what}\n{self._story(job)}")
            time.sleep(0.05)  # the state of other processes has no event to wait for here

    def kill(self, name: str, signum: int = signal.SIGKILL) -> None:
        """Send a signal to one of our own processes and, if it ends it, reap it."""
        self.processes[name].send_signal(signum)
        if signum in (signal.SIGKILL, signal.SIGTERM):
            self._reap(name)

    def _reap(self, name: str) -> None:
        """Wait for the end of one of our processes; one that does not end is killed, and its story told."""
        process = self.processes.pop(name)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            story = self._story(None)
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not end within 30 s\n{story}") from None

    def ours(self) -> list[psutil.Process]:
        """Every process that was started by this cluster, directly or not."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(TAG) == self.tag:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def close(self) -> None:
        """Stop in order and prove that nothing is left."""
        self.api.close()
        nodes = [name for name in self.processes if name != "server"]
        for name in nodes:
            self.processes[name].send_signal(signal.SIGTERM)
        for name in nodes:
            self.processes.pop(name).wait(40)
        if "server" in self.processes:
            self.kill("server", signal.SIGTERM)
        left = self.ours()
        for process in left:
            process.kill()
        if self.gate is not None:
            self.gate.close()
        self.zookeeper.stop()
        assert not left, f"left behind: {[(p.pid, p.info if hasattr(p, 'info') else p) for p in left]}"

    def _serves(self) -> bool:
        process = self.processes["server"]
        assert process.poll() is None, f"the JobServer ended\n{self._story(None)}"
        try:
            return self.api.get("/api/v1/health").status_code == 200
        except httpx.TransportError:
            return False

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.base / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                command, env=self.environ, cwd=self.base, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def _story(self, job: str | None) -> str:
        """What the processes said last, for the message of a failed wait."""
        files = [*sorted(self.base.glob("*.out")), *sorted(self.base.glob("logs/*/*.log"))]
        parts = [
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-25:]) for path in files
        ]
        if job is not None:
            parts.insert(0, str(self.api.get(f"/api/v1/jobs/{job}").text))
        return "\n".join(parts)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
