"""This project: a real ZooKeeper, two JobServers, and JobClients on two nodes of this machine."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from bench.errors import SystemFailed
from bench.systems.base import ROOT, TAG, JobOptions, System
from jobserver.drill.cluster import Cluster, ClusterError

JOB = "bench"
SESSION_TIMEOUT_S = 2.0
NODES = ("a", "b")
STANDBY = "standby"


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
        paths = f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"
        environ = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", TAG: self.tag}
        self.cluster = Cluster(base, environ=environ, session_timeout_s=SESSION_TIMEOUT_S)
        self._frozen = False

    def start(self, size: int) -> None:
        slots = (self.max_np + 1) // 2
        with _failures():
            self.cluster.start()
            for node in NODES:
                self.cluster.add_node(node, slots=slots)
            command = [sys.executable, *self.job_command()]
            self.cluster.create(JOB, command, min_np=1, max_np=self.max_np, np=size, max_failures=1000)

    def resize(self, size: int) -> None:
        with _failures():
            self.cluster.post(f"/jobs/{JOB}/scale", {"np": size})

    def prepare_coordinator_loss(self) -> None:
        """A second JobServer, which becomes the leader's successor."""
        with _failures():
            self.cluster.start_server(name=STANDBY)

    def kill_coordinator(self) -> None:
        """SIGKILL to the leading JobServer, which is the one that was started first; the other one is asked then."""
        self.cluster.kill("server")
        self.cluster.ask(STANDBY)

    def kill_driver(self) -> None:
        with _failures():
            pid = self.cluster.job(JOB)["driver"]["pid"]
        os.kill(pid, signal.SIGKILL)

    def prepare_node_loss(self) -> None:
        with _failures():
            self.cluster.wait_until_settled()

    def lose_node(self) -> None:
        """Freeze the JobClient of the node without the driver and all that it started."""
        with _failures():
            driver_node = self.cluster.job(JOB)["plan"]["driver_node"]
        node = next(node for node in NODES if node != driver_node)
        agent = psutil.Process(self.cluster.processes[node].pid)
        self._frozen = True
        for process in [agent, *agent.children(recursive=True)]:
            process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        try:
            with _failures():
                # What is frozen cannot stop in order.
                self.cluster.abandon() if self._frozen else self.cluster.close()
        finally:
            super().close()


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """What goes wrong with the cluster is a failure of the system."""
    try:
        yield
    except (ClusterError, httpx.HTTPError) as error:
        raise SystemFailed(str(error).partition("\n")[0] or type(error).__name__) from error
