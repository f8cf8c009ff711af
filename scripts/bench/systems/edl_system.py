"""This project: a real ZooKeeper, two JobServers, and JobClients on two nodes of this machine."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
from cluster import Cluster

from bench.errors import SystemFailed
from bench.systems.base import ROOT, TAG, JobOptions, System, free_port

JOB = "bench"
SESSION_TIMEOUT_S = 2.0
NODES = ("a", "b")
_TIMEOUT_OPTION = ("--session-timeout", f"{SESSION_TIMEOUT_S:g}")


class Edl(System):
    """A cluster of two nodes, each with slots for half of the largest world."""

    name = "edl"
    program = "edl_job.py"
    starts_before_pause = True
    config = (
        f"1 ZooKeeper, 2 JobServers, 2 JobClients, session time-out {SESSION_TIMEOUT_S:g} s; PerWorkerBatch, "
        "ElasticBatchSampler; no checkpoint, no spares: a standby is started when a worker is asked for"
    )

    def __init__(self, base: Path, max_np: int, job: JobOptions) -> None:
        super().__init__(base, max_np, job)
        environ = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}", TAG: self.tag}
        self.cluster = Cluster(base, environ=environ)
        self._frozen: list[psutil.Process] = []

    def start(self, size: int) -> None:
        slots = (self.max_np + 1) // 2
        with _failures():
            self.cluster.start(server_options=_TIMEOUT_OPTION)
            for node in NODES:
                self.cluster.add_node(node, slots=slots, options=_TIMEOUT_OPTION)
            command = [sys.executable, *self.job_command()]
            spec = {"job": JOB, "command": command, "min_np": 1, "max_np": self.max_np, "np": size}
            answer = self.cluster.api.post("/api/v1/jobs", json={**spec, "max_failures": 1000})
        if answer.status_code != 201:
            raise SystemFailed(f"the job was refused: {answer.text}")

    def resize(self, size: int) -> None:
        with _failures():
            self.cluster.post(f"/jobs/{JOB}/scale", {"np": size})

    def prepare_coordinator_loss(self) -> None:
        """A second JobServer, which becomes the leader's successor."""
        self._standby_port = free_port()
        command = [sys.executable, "-m", "jobserver", "--server_port", str(self._standby_port), *_TIMEOUT_OPTION]
        self.spawn("standby", command, **self.cluster.environ)
        with httpx.Client(base_url=f"http://127.0.0.1:{self._standby_port}") as api:
            self.wait(lambda: _answers(api), 30, "the second JobServer answers")

    def kill_coordinator(self) -> None:
        """SIGKILL to the leading JobServer; from then on the standby is asked."""
        self.cluster.kill("server")
        self.cluster.api.base_url = httpx.URL(f"http://127.0.0.1:{self._standby_port}")

    def kill_driver(self) -> None:
        os.kill(self.cluster.job(JOB)["driver"]["pid"], signal.SIGKILL)

    def lose_node(self) -> None:
        """Freeze the JobClient of the node without the driver and all that it started."""
        driver_node = self.cluster.job(JOB)["plan"]["driver_node"]
        node = next(node for node in NODES if node != driver_node)
        agent = psutil.Process(self.cluster.processes[node].pid)
        self._frozen = [agent, *agent.children(recursive=True)]
        for process in self._frozen:
            process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        for process in self._frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        try:
            if "standby" in self.processes:
                self.reap("standby", signal.SIGTERM)
            with _failures():
                self.cluster.close()
        finally:
            super().close()


def _answers(api: httpx.Client) -> bool:
    try:
        return api.get("/api/v1/health").status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """What the cluster of the tests asserts is a failure of the system here."""
    try:
        yield
    except (AssertionError, httpx.HTTPError, subprocess.TimeoutExpired) as error:
        raise SystemFailed(str(error).partition("\n")[0] or type(error).__name__) from error
