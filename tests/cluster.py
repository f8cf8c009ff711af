"""A whole cluster on this machine for end-to-end tests: that of `edl drill`, with the job of the tests."""

import sys
from pathlib import Path
from typing import Any

from jobserver.drill import cluster
from jobserver.drill.cluster import TAG, ClusterError, Json

__all__ = ["ROOT", "TAG", "TINY_JOB", "Cluster", "ClusterError", "Json"]

ROOT = Path(__file__).resolve().parent.parent
TINY_JOB = ROOT / "tests" / "jobs" / "tiny.py"


class Cluster(cluster.Cluster):
    """A cluster whose jobs record what they do below its base."""

    def submit(self, job: str, *args: str, program: Path = TINY_JOB, record_dir: str = "records", **spec: Any) -> None:
        self.create(job, [sys.executable, str(program), "--record_dir", str(self.base / record_dir), *args], **spec)
