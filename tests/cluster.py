"""A whole cluster on this machine for end-to-end tests: that of `edl drill`, with the job of the tests."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from local_ensemble import LocalEnsemble
from zookeeper_gate import ZooKeeperGate

from jobserver.drill import cluster
from jobserver.drill.cluster import TAG, ClusterError, Json

__all__ = ["ROOT", "TAG", "TINY_JOB", "Cluster", "ClusterError", "Json"]

ROOT = Path(__file__).resolve().parent.parent
TINY_JOB = ROOT / "tests" / "jobs" / "tiny.py"


class Cluster(cluster.Cluster):
    """A cluster whose jobs record what they do below its base. `ensemble`: three ZooKeeper servers instead of one."""

    def __init__(self, base: Path, *, ensemble: bool = False, **options: Any) -> None:
        super().__init__(base, **options)
        self.ensemble = LocalEnsemble(base / "ensemble") if ensemble else None
        #: by name of the process; what it starts goes through the same one
        self.gates: dict[str, ZooKeeperGate] = {}

    def start(self, *, server_options: tuple[str, ...] = (), gated: bool = False) -> Self:
        """`gated`: each process reaches ZooKeeper through a gate of its own, which tests can shut (`gates`)."""
        self._gated = gated
        return super().start(server_options=server_options)

    def start_zookeeper(self) -> str:
        return super().start_zookeeper() if self.ensemble is None else self.ensemble.start()

    def start_driver(self, job: str, node: str) -> subprocess.Popen[bytes]:
        """A driver that no plan asked for."""
        options = {"--zookeeper": self.environ["EDL_ZOOKEEPER"], "--job": job, "--node": node}
        command = [sys.executable, "-m", "edl_collective.driver", "--key-file", self.environ["EDL_KEY_FILE"]]
        self._spawn("driver", [*command, *(word for pair in options.items() for word in pair)])
        return self.processes.pop("driver")

    def abandon(self) -> None:
        for gate in self.gates.values():
            gate.close()
        super().abandon()
        if self.ensemble is not None:
            self.ensemble.stop()

    def submit(self, job: str, *args: str, program: Path = TINY_JOB, record_dir: str = "records", **spec: Any) -> None:
        self.create(job, [sys.executable, str(program), "--record_dir", str(self.base / record_dir), *args], **spec)

    def _spawn(self, name: str, command: list[str]) -> None:
        hosts = self.environ["EDL_ZOOKEEPER"]
        if self._gated:
            gate = self.gates.get(name) or self.gates.setdefault(name, ZooKeeperGate(hosts))
            self.environ["EDL_ZOOKEEPER"] = gate.hosts
        try:
            super()._spawn(name, command)
        finally:
            self.environ["EDL_ZOOKEEPER"] = hosts
