"""This project: a real ZooKeeper, two JobServers, and JobClients on nodes of this machine."""

import os
import sys
from pathlib import Path

from cluster import Cluster

from bench.errors import SystemFailed
from bench.systems.base import ROOT, TAG, JobOptions, System

JOB = "bench"
SESSION_TIMEOUT_S = 2.0
NODES = ("a", "b")


class Edl(System):
    """A cluster of two nodes with enough slots for the largest world on each half."""

    name = "edl"
    program = "edl_job.py"
    config = (
        f"ZooKeeper, 2 JobServers, 2 JobClients, session time-out {SESSION_TIMEOUT_S:g} s; PerWorkerBatch, "
        "ElasticBatchSampler; no checkpoint"
    )

    def __init__(self, base: Path, max_np: int, job: JobOptions) -> None:
        super().__init__(base, max_np, job)
        environ = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}", TAG: self.tag}
        self.cluster = Cluster(base, environ=environ)

    def start(self, size: int) -> None:
        cluster = self.cluster
        cluster.start(server_options=("--session-timeout", f"{SESSION_TIMEOUT_S:g}"))
        for node in NODES:
            cluster.add_node(
                node, slots=(self.max_np + 1) // 2, options=("--session-timeout", f"{SESSION_TIMEOUT_S:g}")
            )
        command = [sys.executable, *self.job_command()]
        spec = {"job": JOB, "command": command, "min_np": 1, "max_np": self.max_np, "np": size, "max_failures": 1000}
        answer = cluster.api.post("/api/v1/jobs", json=spec)
        if answer.status_code != 201:
            raise SystemFailed(f"the job was refused: {answer.text}")

    def resize(self, size: int) -> None:
        self.cluster.post(f"/jobs/{JOB}/scale", {"np": size})

    def close(self) -> None:
        try:
            self.cluster.close()
        finally:
            super().close()
