"""The JobClient when its store is away, its name is taken, or it ends itself."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent_cluster import PATHS, WORKER, Cluster, node, processes_below, running_agent, until, wait_for
from trees import delete_all

from edl_collective.coord.errors import Disconnected
from edl_collective.coord.memory_store import MemoryStore, MemoryTree
from edl_collective.coord.records import (
    JobSpec,
    NodeRecord,
    Outcome,
    PlannedWorker,
    WorkerState,
    decode,
    encode,
)
from jobclient.processes import Command
from jobclient.worker import Launch, Worker

pytestmark = pytest.mark.integration


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_agent(tmp_path) as found:
        yield found


async def test_lost_session_stops_no_training_and_the_node_comes_back(cluster: Cluster) -> None:
    cluster.submit()
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    cluster.store.suspend()
    cluster.store.expire()
    assert cluster.server.get(PATHS.node("a")) is None
    cluster.plan()  # nobody hears it
    cluster.assign("w1", 1)
    await cluster.said("running", "w1", 1)
    cluster.plan("w1")
    cluster.store.resume()
    await until(lambda: cluster.server.get(PATHS.node("a")) is not None)
    running = await cluster.state("w1", WorkerState.RUNNING)
    assert running.generation == 1
    back = cluster.server.get(PATHS.node("a"))
    assert back is not None
    assert decode(back.data, NodeRecord).incarnation == "life-1"


async def test_job_submitted_again_during_an_outage_begins_afresh(cluster: Cluster) -> None:
    cluster.submit(submitted_at=1.0)
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    cluster.assign("w1", 50)
    await cluster.state("w1", WorkerState.RUNNING)
    old, proxy = cluster.worker("w1"), cluster.proxy
    assert proxy is not None
    cluster.store.suspend()
    delete_all(cluster.server, PATHS.job("j"))
    cluster.submit(submitted_at=2.0)
    cluster.plan("w1")
    cluster.store.resume()
    await until(lambda: cluster.proxy is not proxy)
    assert proxy.closed, "it knows a generation 50"
    await cluster.said("gate", "w1", 0)
    new = await cluster.state("w1", WorkerState.STANDBY)
    assert old is not None
    assert new.pid != old.pid
    assert new.generation == 0
    assert cluster.proxy is not None
    assert ("exited", "w1", "killed by SIGTERM") not in cluster.proxy.said, "the exit of another w1"


class Unwritable(MemoryStore):
    """Reads, but writes no record of a worker while `broken` is set."""

    broken = False

    def set(self, path: str, data: bytes, version: int | None) -> int:
        if self.broken and path == PATHS.worker("j", "w1"):
            raise Disconnected("no answer")
        return super().set(path, data, version)


async def unrecorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> tuple[Cluster, Unwritable]:
    """A cluster that has decided to start w1 and cannot write so."""
    tree = MemoryTree()
    store = Unwritable(tree)
    store.broken = True
    cluster = Cluster(tmp_path, tree, store)
    cluster.submit()
    cluster.plan("w1")
    cluster.start()
    await until(lambda: "start when their records are written" in caplog.text)
    return cluster, store


async def test_worker_starts_when_its_record_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster, store = await unrecorded(tmp_path, caplog)
    await asyncio.sleep(0.2)
    assert not processes_below(cluster.work_dir), "its next life would start the same worker again"
    store.broken = False
    await cluster.said("gate", "w1", 0)
    await cluster.close()


async def test_worker_stopped_before_its_record_is_written_never_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, store = await unrecorded(tmp_path, caplog)
    cluster.plan()
    await cluster.said("exited", "w1", "exit code 127")
    store.broken = False
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert (ended.outcome, ended.pid) == (Outcome.LEFT, None)
    await cluster.close()
    assert not (cluster.log_dir / "j" / "w1.log").exists()


async def test_exits_reach_the_driver_while_the_store_is_away(cluster: Cluster) -> None:
    cluster.submit("crash")
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    cluster.store.suspend()
    cluster.assign("w1", 1)
    await cluster.said("exited", "w1", "exit code 1")
    cluster.store.resume()
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert ended.outcome is Outcome.FAILED


async def test_name_of_another_session_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(tmp_path)
    other = MemoryStore(cluster.tree)
    other.create(PATHS.node("a"), encode(node("life-0")), ephemeral=True)
    cluster.submit()
    cluster.plan("w1")
    cluster.start()
    await until(lambda: "held by another session" in caplog.text)
    assert cluster.worker("w1") is None
    other.expire()
    await cluster.said("gate", "w1", 0)
    await cluster.close()


async def test_close_while_the_name_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(tmp_path)
    other = MemoryStore(cluster.tree)
    other.create(PATHS.node("a"), encode(node("life-0")), ephemeral=True)
    cluster.start()
    await until(lambda: "held by another session" in caplog.text)
    assert cluster.task is not None
    cluster.agent.close()
    async with asyncio.timeout(60):
        await cluster.task
    found = other.get(PATHS.node("a"))
    assert found is not None
    assert decode(found.data, NodeRecord).incarnation == "life-0", "the other one's name is left alone"


async def test_close_stops_everything_and_signs_off(cluster: Cluster) -> None:
    cluster.submit("family")
    cluster.plan("w1", "w2")
    for rank, name in enumerate(("w1", "w2")):
        await cluster.said("gate", name, 0)
        cluster.assign(name, 1, rank)
    await until(lambda: len(processes_below(cluster.work_dir)) >= 4)
    await cluster.close()
    assert cluster.server.get(PATHS.node("a")) is None
    for name in ("w1", "w2"):
        ended = cluster.worker(name)
        assert ended is not None
        assert (ended.state, ended.outcome) == (WorkerState.EXITED, Outcome.LEFT)


async def test_wrong_token_is_refused(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    cluster.submit(command=("python3", "-c", WORKER.replace('os.environ["EDL_WORKER_TOKEN"]', '"0" * 32')))
    cluster.plan("w1")
    await cluster.state("w1", WorkerState.EXITED)
    assert "wrong token" in caplog.text
    assert cluster.proxy is not None
    assert [said[0] for said in cluster.proxy.said] == ["start", "exited"]


def test_killed_jobclient_leaves_nothing(tmp_path: Path) -> None:
    """SIGKILL of the process in which the agent runs."""
    code = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from agent_cluster import Cluster
async def run():
    cluster = Cluster(Path(sys.argv[1]))
    cluster.start()
    cluster.submit("family")
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    cluster.assign("w1", 1)
    await asyncio.sleep(600)
asyncio.run(run())
"""
    here = Path(__file__).parent
    client = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(here), str(here.parent)])
    try:
        wait_for(lambda: len(processes_below(tmp_path / "work")) >= 2)
    finally:
        client.kill()
        client.wait()
    wait_for(lambda: not processes_below(tmp_path / "work"))


async def test_exit_waits_for_the_last_words(tmp_path: Path) -> None:
    heard = asyncio.Event()
    spec, planned = JobSpec(job="j", command=("true",)), PlannedWorker("w1", "a", 0)
    launch = Launch(None, Command(["true"], dict(os.environ), tmp_path, tmp_path / "w.log"))

    async def drain(job: str, worker: str) -> None:
        assert (job, worker) == ("j", "w1")
        await heard.wait()

    worker = Worker(node(), spec, planned, launch, 0.0, changed=lambda _: None, drain=drain)
    worker.start(0.0)
    await until(lambda: worker.record.pid is not None)
    await until(lambda: not Path(f"/proc/{worker.record.pid}").exists())
    await asyncio.sleep(0.1)
    assert not worker.exited
    heard.set()
    await until(lambda: worker.gone)
    assert worker.record.outcome is Outcome.FINISHED
