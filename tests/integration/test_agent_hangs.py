"""Workers that hang, and nodes that are drained: what the JobClient waits for, and for how long."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent_cluster import PATHS, Cluster, running_agent, until

from edl_collective.coord.records import (
    DrainRecord,
    LeaderRecord,
    NodeRecord,
    Outcome,
    WorkerRecord,
    WorkerState,
    decode,
)
from edl_collective.messages import Abort, Interrupt, Leave

pytestmark = pytest.mark.integration

#: a deadline of less than a second, and not this time-out of the job, ends what is waited for
LEAVE_TIMEOUT_S = 600.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_agent(tmp_path) as found:
        yield found


async def train(cluster: Cluster, mode: str = "wait", **fields: object) -> WorkerRecord:
    """w1 runs in generation 1."""
    cluster.submit(mode, leave_timeout_s=LEAVE_TIMEOUT_S, **fields)
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    cluster.assign("w1", 1)
    return await cluster.state("w1", WorkerState.RUNNING)


def abort(cluster: Cluster, generation: int = 1) -> None:
    assert cluster.proxy is not None
    cluster.proxy.send("w1", Abort(generation=generation))


@pytest.mark.parametrize("signum", [None, signal.SIGSTOP], ids=["sleeps", "stopped"])
async def test_a_worker_that_does_not_get_warm_is_given_up(cluster: Cluster, signum: signal.Signals | None) -> None:
    cluster.submit(command=("sleep", "600"), warm_timeout_s=1.5)
    cluster.plan("w1")
    await until(lambda: (found := cluster.worker("w1")) is not None and found.pid is not None)
    started = cluster.worker("w1")
    assert started is not None
    assert started.pid is not None
    if signum is not None:
        os.kill(started.pid, signum)
    ended = await cluster.state("w1", WorkerState.EXITED)
    why = "did not reach the gate within warm_timeout_s = 1.5"
    assert (ended.outcome, ended.exit_code, ended.placed) == (Outcome.FAILED, -9, False)
    assert ended.log_tail == f"worker w1 {why}"
    await cluster.said("exited", "w1", why)
    cluster.plan("w2")  # the slot is free
    await until(lambda: cluster.worker("w2") is not None)


async def test_a_package_hook_that_hangs_is_given_up(cluster: Cluster) -> None:
    (cluster.work_dir / "package.sh").write_text("sleep 600\n")
    cluster.submit(package_hook="package.sh", warm_timeout_s=0.3)
    cluster.plan("w1")
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert (ended.outcome, "warm_timeout_s = 0.3" in ended.log_tail) == (Outcome.FAILED, True)


async def test_a_worker_at_the_gate_may_wait_for_ever(cluster: Cluster) -> None:
    cluster.submit(warm_timeout_s=600.0)
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    cluster.clock.ahead_s = 1200.0
    cluster.plan("w1", "w2")
    await cluster.said("gate", "w2", 0)  # it has looked at all of its workers since
    await cluster.state("w1", WorkerState.STANDBY)


async def test_a_stopped_worker_is_given_up_after_an_abort(cluster: Cluster) -> None:
    running = await train(cluster, "busy", return_timeout_s=0.4)
    assert running.pid is not None
    os.kill(running.pid, signal.SIGSTOP)
    await asyncio.sleep(0.6)
    assert cluster.worker("w1") == running, "without an abort nobody looks"
    began_s = time.monotonic()
    abort(cluster)
    await cluster.said("exited", "w1", "was silent for return_timeout_s = 0.4 after an abort")
    assert time.monotonic() - began_s >= 0.4
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert (ended.outcome, ended.exit_code, ended.placed) == (Outcome.FAILED, -9, True)


async def test_who_is_asked_at_a_step_boundary_is_waited_for(cluster: Cluster) -> None:
    running = await train(cluster, "stuck", return_timeout_s=0.2)
    assert running.pid is not None
    os.kill(running.pid, signal.SIGSTOP)
    assert cluster.proxy is not None
    cluster.proxy.send("w1", Interrupt(generation=1))
    abort(cluster, generation=0)
    await asyncio.sleep(0.6)
    assert cluster.worker("w1") == running
    os.kill(running.pid, signal.SIGCONT)
    await cluster.said("gate", "w1", 1)


async def test_a_busy_worker_is_asked_again_and_waited_for(cluster: Cluster) -> None:
    await train(cluster, "busy", return_timeout_s=4.0, env={"MODE": "busy", "HOROVOD_GLOO_TIMEOUT_SECONDS": "0"})
    abort(cluster)
    await asyncio.sleep(5.2)
    await cluster.state("w1", WorkerState.RUNNING)
    assert cluster.proxy is not None
    cluster.proxy.send("w1", Interrupt(generation=1))
    await cluster.said("gate", "w1", 1)


async def test_a_worker_that_hangs_in_horovod_is_given_up(cluster: Cluster) -> None:
    env = {"MODE": "stuck", "HOROVOD_GLOO_TIMEOUT_SECONDS": "1"}
    await train(cluster, "stuck", return_timeout_s=3.0, env=env)
    began_s = time.monotonic()
    abort(cluster)
    await cluster.said("exited", "w1", "hung in Horovod for 4 s after an abort (return_timeout_s is 3)")
    assert time.monotonic() - began_s >= 4.0


# ---- drains ----------------------------------------------------------------------------------------------------


async def test_a_drained_node_starts_nothing_and_stops_who_does_not_leave(cluster: Cluster) -> None:
    await train(cluster, stop_timeout_s=5.0)
    began_s = time.monotonic()
    cluster.put(PATHS.drain("a"), DrainRecord(node="a", deadline_s=1.5))
    cluster.plan()
    await cluster.state("w1", WorkerState.LEAVING)
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert (ended.outcome, ended.exit_code) == (Outcome.LEFT, -15)
    assert time.monotonic() - began_s > 1.4
    cluster.plan("w2")
    await asyncio.sleep(0.3)
    assert cluster.worker("w2") is None
    assert cluster.server.get(PATHS.node("a")) is not None, "it stays registered"
    cluster.server.delete(PATHS.drain("a"))
    await cluster.state("w2", WorkerState.STANDBY)


async def test_a_drain_that_nobody_plans_ends_by_its_deadline(cluster: Cluster) -> None:
    await train(cluster)
    cluster.put(PATHS.drain("a"), DrainRecord(node="a", deadline_s=0.3))
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert (ended.outcome, ended.exit_code) == (Outcome.LEFT, -15)


@pytest.mark.parametrize("suspended", [False, True], ids=["nobody leads", "ZooKeeper is away"])
async def test_sigterm_waits_for_somebody_who_can_plan(tmp_path: Path, suspended: bool) -> None:
    async with running_agent(tmp_path, "--drain-timeout", "20") as cluster:
        await train(cluster)
        if suspended:
            cluster.store.suspend()
        cluster.agent.close()
        await asyncio.sleep(0.3)
        assert not draining(cluster)
        record = cluster.worker("w1")
        assert record is not None
        assert record.state is not WorkerState.EXITED
        cluster.put(PATHS.leader, LeaderRecord(server="s", api_url="http://s", epoch=1, pid=1))
        cluster.store.resume()
        await until(lambda: draining(cluster))
        assert cluster.proxy is not None
        cluster.proxy.send("w1", Interrupt(generation=1))
        await cluster.said("gate", "w1", 1)
        cluster.proxy.send("w1", Leave(reason="t"))
        assert cluster.task is not None
        await asyncio.wait_for(cluster.task, 60)
        ended = cluster.worker("w1")
        assert ended is not None
        assert (ended.outcome, ended.exit_code) == (Outcome.LEFT, 0)


def draining(cluster: Cluster) -> bool:
    found = cluster.server.get(PATHS.node("a"))
    return found is not None and decode(found.data, NodeRecord).draining


async def test_sigterm_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    async with running_agent(tmp_path, "--drain-timeout", "1.5") as cluster:
        cluster.put(PATHS.leader, LeaderRecord(server="s", api_url="http://s", epoch=1, pid=1))
        await train(cluster)
        began_s = time.monotonic()
        cluster.agent.close()
        await cluster.state("w1", WorkerState.LEAVING)
        ended = await cluster.state("w1", WorkerState.EXITED)
        assert (ended.outcome, ended.exit_code) == (Outcome.LEFT, -15)
        assert time.monotonic() - began_s >= 1.5
        assert cluster.task is not None
        await asyncio.wait_for(cluster.task, 60)
