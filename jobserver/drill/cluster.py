"""A whole cluster on this machine: ZooKeeper, JobServers and JobClients as real processes on free ports.

Every process carries a tag in its environment, and the kernel kills it when this one dies; `close` stops all in order
and proves that none is left, `abandon` kills all. It looks at the job through the HTTP interface alone.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from edl_collective.coord.key_file import load_or_create_key
from jobserver.drill.network import Network
from jobserver.drill.tagged import processes_with
from jobserver.four_letter_word import HOST
from jobserver.local_zookeeper import LocalZooKeeper

#: holds the packages, as they are imported here
PACKAGES_DIR = Path(__file__).resolve().parents[2]
TAG = "EDL_CLUSTER_TAG"
SERVER = "server"
STOP_TIMEOUT_S = 40.0
#: a busy machine may take so long to start Java
ZOOKEEPER_TIMEOUT_S = 60.0
#: and to start a JobServer or a JobClient
START_TIMEOUT_S = 60.0
#: what is killed is gone within this time
GONE_TIMEOUT_S = 10.0
POLL_S = 0.1

Json = dict[str, Any]


class ClusterError(Exception):
    """Raised when a cluster does not come where it should within a time, with what its processes said last."""


class Unavailable(ClusterError):
    """Raised when a JobServer does not answer now, cannot for want of ZooKeeper, or knows of no such thing yet."""


class Cluster:
    """Start with `start()`, add nodes with `add_node(name)`; everything ends with `close()` or `abandon()`.

    base: an existing directory for data and logs. network: puts each node into a network namespace of its own.
    """

    def __init__(
        self,
        base: Path,
        *,
        environ: dict[str, str] | None = None,
        session_timeout_s: float = 4.0,
        network: Network | None = None,
    ) -> None:
        self.base = base
        self.tag = uuid.uuid4().hex
        self.session_timeout_s = session_timeout_s
        self.network = network
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        #: names of the processes that are JobServers
        self._ports: dict[str, int] = {}
        key_path = base / "key"
        token = load_or_create_key(key_path).api_token
        host = network.address if network else HOST
        self.zookeeper = LocalZooKeeper(base / "zookeeper", host=host, startup_timeout_s=ZOOKEEPER_TIMEOUT_S)
        # JobClients keep their sockets here, whose paths may have 107 bytes
        self._sockets = tempfile.TemporaryDirectory(prefix="edl-")
        self.port = _free_port()
        self.environ = {
            **os.environ,
            TAG: self.tag,
            "EDL_KEY_FILE": str(key_path),
            "PYTHONPATH": str(PACKAGES_DIR),
            "EDL_SERVER": f"http://127.0.0.1:{self.port}",
            "TMPDIR": self._sockets.name,
            **(environ or {}),
        }
        headers = {"Authorization": f"Bearer {token}"}
        self.api = httpx.Client(base_url=self.environ["EDL_SERVER"], timeout=20, headers=headers, trust_env=False)

    # ---- processes ------------------------------------------------------------------------------------------------

    def start_zookeeper(self) -> str:
        """Start the server of this cluster; where its clients find it."""
        return self.zookeeper.start()

    def start(self, *, server_options: tuple[str, ...] = ()) -> Self:
        """ZooKeeper and a JobServer."""
        self.environ["EDL_ZOOKEEPER"] = self.start_zookeeper()
        self.start_server(*server_options)
        return self

    def start_server(self, *options: str, name: str = SERVER) -> None:
        """A JobServer; `api` asks the newest."""
        port = self._ports.setdefault(name, self.port if name == SERVER else _free_port())
        command = [sys.executable, "-m", "jobserver", "--server-port", str(port), "--server-name", name]
        self._spawn(name, [*command, "--session-timeout", f"{self.session_timeout_s:g}", *options])
        self.ask(name)
        self.wait(lambda: self._serves(name), START_TIMEOUT_S, "the JobServer answers")

    def ask(self, name: str) -> None:
        """From now on `api` asks this JobServer."""
        self.api.base_url = httpx.URL(f"http://127.0.0.1:{self._ports[name]}")

    def add_node(self, node: str, *, slots: int = 1, options: tuple[str, ...] = ()) -> None:
        """A JobClient; returns when it is registered."""
        self.start_node(node, slots=slots, options=options)
        self.wait_for_node(node)

    def start_node(self, node: str, *, slots: int = 1, options: tuple[str, ...] = ()) -> None:
        command = [sys.executable, "-m", "jobclient", "--node", node, "--slots", str(slots), "--gpus", "none"]
        command += ["--session-timeout", f"{self.session_timeout_s:g}"]
        command += ["--log-dir", str(self.base / "logs"), "--work-dir", str(self.base), *options]
        if self.network is not None:
            address = self.network.add(node)
            command = self.network.inside(node, [*command, "--address", address])
        self._spawn(node, command)

    def wait_until_settled(self) -> None:
        """Until the JobServer, which began not long ago, takes a node that is missing for lost."""
        self.wait(lambda: self.get("/health")["unsettled_s"] == 0, 60, "the JobServer has seen ZooKeeper long enough")

    def wait_for_node(self, node: str) -> None:
        self.wait(
            lambda: node in {n["node"] for n in self.get("/nodes")["nodes"]},
            START_TIMEOUT_S,
            f"node {node} is registered",
        )

    def kill(self, name: str, signum: int = signal.SIGKILL) -> None:
        """Send a signal to one of our own processes and, if it ends it, reap it."""
        self.processes[name].send_signal(signum)
        if signum in (signal.SIGKILL, signal.SIGTERM):
            self._reap(name)

    def ours(self) -> list[psutil.Process]:
        """Every process that was started by this cluster, directly or not."""
        return processes_with(TAG, lambda tag: tag == self.tag)

    def close(self) -> None:
        """Stop in order and prove that nothing is left. Raises ClusterError, when nothing runs any more."""
        try:
            self._stop_in_order()
            left = [f"{process.pid} {process.name()}" for process in self.ours()]
        finally:
            self.abandon()
        if left:
            raise ClusterError(f"left behind: {', '.join(left)}")

    def _stop_in_order(self) -> None:
        nodes = [name for name in self.processes if name not in self._ports]
        for name in nodes:
            self.processes[name].send_signal(signal.SIGTERM)
        for name in nodes:
            self._reap(name)
        for name in list(self.processes):
            self.kill(name, signal.SIGTERM)

    def abandon(self) -> None:
        """Kill what is there, and wait until it is gone; harmless when nothing is."""
        self.api.close()
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.processes.clear()
        psutil.wait_procs(self.ours(), GONE_TIMEOUT_S / 2)  # the shims end what they watch
        left = self.ours()
        for orphan in left:
            orphan.kill()
        psutil.wait_procs(left, GONE_TIMEOUT_S)
        self.zookeeper.stop()
        if self.network is not None:
            self.network.close()
        self._sockets.cleanup()

    # ---- the job --------------------------------------------------------------------------------------------------

    def create(self, job: str, command: list[str], **spec: Any) -> None:
        """Submit a job. Raises ClusterError with what the JobServer says against it."""
        _check(self._request("POST", "/jobs", {"job": job, "command": command, **spec}), 201)

    def get(self, path: str) -> Json:
        return _check(self._request("GET", path), 200)

    def post(self, path: str, body: Json | None = None) -> Json:
        return _check(self._request("POST", path, body), 200)

    def delete(self, path: str) -> Json:
        return _check(self._request("DELETE", path), 200)

    def job(self, job: str) -> Json:
        return self.get(f"/jobs/{job}")

    def events(self, job: str, kind: str) -> list[Json]:
        """Fields and text of the job's events of one kind, oldest first."""
        return [event for event in self.get(f"/jobs/{job}/events")["events"] if event["kind"] == kind]

    def running(self, job: str) -> list[Json]:
        """The job's workers that are in the present world, oldest first."""
        workers = [w for w in self.job(job)["worker_records"] if w["state"] == "running"]
        return sorted(workers, key=lambda w: int(w["worker"][1:]))

    def trains(self, job: str, size: int) -> bool:
        """Whether a world of `size` workers, all of them planned, is the newest and has completed a step."""
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

    def wait_for_world(self, job: str, size: int, timeout_s: float = 60) -> None:
        """Until a world of `size` workers is the newest and has completed a step."""
        self.wait(lambda: self.trains(job, size), timeout_s, f"{size} workers of {job} train", job)

    def wait_for_phase(self, job: str, phase: str, timeout_s: float = 90) -> None:
        self.wait(lambda: self.job(job)["phase"] == phase, timeout_s, f"{job} is {phase}", job)

    def wait(self, condition: Callable[[], object], timeout_s: float, what: str, job: str | None = None) -> None:
        """Until `condition` holds; as long as a JobServer is unavailable it does not."""
        deadline = time.monotonic() + timeout_s
        while not _holds(condition):
            if time.monotonic() > deadline:
                raise ClusterError(f"after {timeout_s:g} s not true: {what}\n{self._story(job)}")
            time.sleep(POLL_S)  # the state of other processes has no event to wait for here

    def _request(self, method: str, path: str, body: Json | None = None) -> httpx.Response:
        try:
            return self.api.request(method, f"/api/v1{path}", json=body)
        except httpx.TransportError as error:
            raise Unavailable(f"no answer of the JobServer to {method} {path}: {error}") from error

    def _reap(self, name: str) -> None:
        """Wait for the end of one of our processes; one that does not end is killed, and its story told."""
        process = self.processes.pop(name)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            story = self._story(None)
            process.kill()
            process.wait()
            raise ClusterError(f"{name} did not end within {STOP_TIMEOUT_S:g} s\n{story}") from None

    def _serves(self, name: str) -> bool:
        if self.processes[name].poll() is not None:
            raise ClusterError(f"the JobServer ended\n{self._story(None)}")
        try:
            return self.api.get("/api/v1/health").status_code == 200
        except httpx.TransportError:
            return False

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.base / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environ,
                cwd=self.base,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the owner alone
            )

    def _story(self, job: str | None) -> str:
        """What the processes said last, for the message of a failed wait."""
        files = [*sorted(self.base.glob("*.out")), *sorted(self.base.glob("logs/*/*.log"))]
        parts = [
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-25:]) for path in files
        ]
        if job is not None:
            with contextlib.suppress(Unavailable):
                parts.insert(0, self._request("GET", f"/jobs/{job}").text)
        return "\n".join(parts)


def _holds(condition: Callable[[], object]) -> bool:
    try:
        return bool(condition())
    except Unavailable:
        return False


def _check(answer: httpx.Response, status: int) -> Json:
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        raise Unavailable(answer.text)
    if answer.status_code != status:
        raise ClusterError(f"{answer.request.method} {answer.url.path}: {answer.status_code} {answer.text}")
    value: Json = answer.json()
    return value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
