"""A job on a cluster that is closed: the tree in ZooKeeper has owners, HTTP is TLS, and a stranger gets nowhere."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cluster import Cluster
from kazoo.client import KazooClient
from kazoo.exceptions import NoAuthError

from edl_collective.coord.key_file import load_key
from edl_collective.coord.paths import Paths
from edl_collective.coord.tls import client_context

pytestmark = pytest.mark.e2e

CLOSED = ("--zookeeper-acl", "key", "--tls", "on")


class SecuredCluster(Cluster):
    """Asked over TLS."""

    def ask(self, name: str) -> None:
        headers = self.api.headers
        self.api.close()
        key = load_key(self.base / "key")
        url = f"https://127.0.0.1:{self._ports[name]}"
        self.api = httpx.Client(base_url=url, timeout=60, headers=headers, trust_env=False, verify=client_context(key))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[SecuredCluster]:
    cluster = SecuredCluster(tmp_path)
    try:
        yield cluster.start(server_options=CLOSED)
        cluster.close()
    finally:
        cluster.abandon()


def test_a_job_runs_and_a_stranger_neither_reads_nor_writes(cluster: SecuredCluster) -> None:
    cluster.add_node("a", slots=2, options=CLOSED)
    cluster.create("j", ["sh", "-c", "echo hello; exec sleep 600"], np=1, max_np=1, stop_timeout_s=1.0)
    cluster.wait(lambda: cluster.get("/jobs/j")["driver"] is not None, 60, "the driver has entered the tree")
    assert [node["tls"] for node in cluster.get("/nodes")["nodes"]] == [True]
    cluster.wait(lambda: cluster.api.get("/api/v1/jobs/j/logs/w1").text == "hello\n", 60, "the worker's log is there")
    stranger, paths = KazooClient(cluster.environ["EDL_ZOOKEEPER"]), Paths()
    stranger.start(20)
    try:
        for path in (paths.root, paths.jobs, paths.spec("j"), paths.plan("j"), paths.nodes, paths.driver("j")):
            with pytest.raises(NoAuthError):
                stranger.get(path)
            with pytest.raises(NoAuthError):
                stranger.set(path, b"")
    finally:
        stranger.stop()
        stranger.close()
    cluster.api.post("/api/v1/jobs/j/stop")
    cluster.wait(lambda: cluster.get("/jobs/j")["phase"] == "stopped", 60, "the job stops")
