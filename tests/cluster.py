"""A whole cluster on this machine for end-to-end tests: that of `edl drill`, with the job of the tests."""

import sys
from pathlib import Path
from typing import Any, Self

from zookeeper_gate import ZooKeeperGate

from jobserver.drill import cluster
from jobserver.drill.cluster import TAG, ClusterError, Json

__all__ = ["ROOT", "TAG", "TINY_JOB", "Cluster", "ClusterError", "Json"]

ROOT = Path(__file__).resolve().parent.parent
TINY_JOB = ROOT / "tests" / "jobs" / "tiny.py"


class Cluster(cluster.Cluster):
    """A cluster whose jobs record what they do below its base."""

    #: everybody reaches ZooKeeper through it, and tests can shut it
    gate: ZooKeeperGate | None = None

    def start(self, *, server_options: tuple[str, ...] = (), gated: bool = False) -> Self:
        self._gated = gated
        return super().start(server_options=server_options)

    def start_zookeeper(self) -> str:
        hosts = super().start_zookeeper()
        if self._gated:
            self.gate = ZooKeeperGate(hosts)
            hosts = self.gate.hosts
        return hosts

    def abandon(self) -> None:
        if self.gate is not None:
            self.gate.close()
        super().abandon()

    def submit(self, job: str, *args: str, program: Path = TINY_JOB, record_dir: str = "records", **spec: Any) -> None:
        self.create(job, [sys.executable, str(program), "--record_dir", str(self.base / record_dir), *args], **spec)
