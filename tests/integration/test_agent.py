"""The JobClient and its workers, from start to end, and what their plans say."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent_cluster import PATHS, Cluster, node, running_agent, until
from trees import delete_all

from edl_collective.coord.clock import SystemClock
from edl_collective.coord.records import (
    JobSpec,
    Member,
    Outcome,
    PlannedWorker,
    Progress,
    Rendezvous,
    WorkerState,
    decode,
)
from edl_collective.messages import (
    Abort,
    Gate,
    Interrupt,
    Leave,
)
from jobclient.driver_process import Driver
from jobclient.held_folders import HeldFolders
from jobclient.processes import Command
from jobclient.worker import Launch, Worker

pytestmark = pytest.mark.integration


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_agent(tmp_path) as found:
        yield found


async def test_a_worker_in_init_is_killed_when_its_generation_is_aborted(cluster: Cluster) -> None:
    cluster.submit("init")
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    cluster.assign("w1", 5)
    assert cluster.proxy is not None
    cluster.proxy.send("w1", Abort(generation=4))
    cluster.proxy.send("w1", Abort(generation=5))
    await cluster.said("exited", "w1", "killed by SIGKILL")
    assert (await cluster.state("w1", WorkerState.EXITED)).outcome is Outcome.ABORTED


async def test_a_node_that_came_back_answers_for_the_world_it_was_in(cluster: Cluster) -> None:
    cluster.submit()
    cluster.plan()
    cluster.put(PATHS.rendezvous("j"), Rendezvous(generation=3, epoch=1, members=(Member("w1", "a", 0, 0, 1, 0, 1),)))
    await cluster.said("start")


async def test_worker_from_start_to_finish(cluster: Cluster) -> None:
    cluster.submit("finish")
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    standby = await cluster.state("w1", WorkerState.STANDBY)
    assert (standby.node, standby.slot, standby.incarnation) == ("a", 0, "life-1")
    assert standby.pid is not None
    cluster.assign("w1", 5)
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert (ended.outcome, ended.exit_code, ended.generation, ended.log_tail) == (Outcome.FINISHED, 0, 5, "")
    assert cluster.proxy is not None
    assert cluster.proxy.said[2:] == [("running", "w1", 5), ("finished", "w1"), ("exited", "w1", "exit code 0")]
    await until(lambda: cluster.server.get(PATHS.progress("j")) is not None)
    progress = cluster.server.get(PATHS.progress("j"))
    assert progress is not None
    assert decode(progress.data, Progress).step == 3  # the last report, though less than a second after the first
    assert [(event.kind, event.text, event.fields["worker"]) for event in cluster.events()] == [
        ("epoch", "epoch 1 completed", "w1")
    ]
    assert "begin w1" in (cluster.log_dir / "j" / "w1.log").read_text()
    await asyncio.sleep(0.3)
    assert cluster.worker("w1") == ended, "an id runs once"


async def test_crash_is_a_failure_with_the_last_lines(cluster: Cluster) -> None:
    cluster.submit("crash")
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    cluster.assign("w1", 1)
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert (ended.outcome, ended.exit_code) == (Outcome.FAILED, 1)
    assert "the reason of the crash" in ended.log_tail
    await cluster.said("exited", "w1", "exit code 1")


async def test_killed_worker_is_told_to_the_driver_at_once(cluster: Cluster) -> None:
    cluster.submit()
    cluster.plan("w1", "w2")
    await cluster.said("gate", "w1", 0)
    await cluster.said("gate", "w2", 0)
    cluster.assign("w1", 1)
    running = await cluster.state("w1", WorkerState.RUNNING)
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    await cluster.said("exited", "w1", "killed by SIGKILL")
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert (ended.outcome, ended.exit_code) == (Outcome.FAILED, -9)
    other = cluster.worker("w2")
    assert other is not None
    assert other.state is WorkerState.STANDBY


async def test_leaving_by_the_gate(cluster: Cluster) -> None:
    cluster.submit()
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    cluster.assign("w1", 1)
    await cluster.state("w1", WorkerState.RUNNING)
    cluster.plan()
    await cluster.state("w1", WorkerState.LEAVING)
    assert cluster.proxy is not None
    cluster.proxy.send("w1", Interrupt(generation=1))
    await cluster.said("gate", "w1", 1)
    cluster.proxy.send("w1", Leave(reason="t"))
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert (ended.outcome, ended.exit_code) == (Outcome.LEFT, 0)
    cluster.plan("w2")  # the slot is free again
    await cluster.said("gate", "w2", 0)


async def test_worker_that_does_not_leave_falls_to_the_ladder(cluster: Cluster) -> None:
    cluster.submit(leave_timeout_s=0.3)
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    cluster.assign("w1", 1)
    await cluster.state("w1", WorkerState.RUNNING)
    cluster.plan()
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert (ended.outcome, ended.exit_code) == (Outcome.LEFT, -15)


async def test_slot_is_free_though_the_record_of_the_exit_was_deleted_before(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    lingering: list[Worker] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            Worker, "_set_gone", lambda worker: lingering.append(worker)
        )  # something of w1 is left on the node
        cluster.submit(command=("true",))
        cluster.plan("w1")
        await cluster.state("w1", WorkerState.EXITED)
        cluster.plan("w2")
        cluster.server.delete(PATHS.worker("j", "w1"))
        await until(lambda: bool(lingering))
        await asyncio.sleep(0.2)
        assert cluster.worker("w2") is None, "a slot holds one worker"
    lingering[0]._set_gone()
    await cluster.state("w2", WorkerState.EXITED)
    assert cluster.worker("w1") is None


async def test_removed_job_is_stopped_and_does_not_come_back(cluster: Cluster) -> None:
    cluster.submit()
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    delete_all(cluster.server, PATHS.job("j"))
    await cluster.said("exited", "w1", "killed by SIGTERM")
    await until(lambda: cluster.proxy is not None and cluster.proxy.closed)
    await asyncio.sleep(0.2)
    assert cluster.server.get(PATHS.job("j")) is None


async def test_package_hook_makes_the_directory(cluster: Cluster) -> None:
    hook = cluster.work_dir / "package.sh"
    hook.write_text('echo "packing $1 $2"; mkdir -p "pods/$2"\n')
    cluster.submit("finish", package_hook="package.sh", pod_path="pods")
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    log = (cluster.log_dir / "j" / "w1.log").read_text()
    assert "packing -pod_id w1" in log
    assert f"in {cluster.work_dir}/pods/w1" in log


async def test_failing_package_hook_is_a_failure_with_its_output(cluster: Cluster) -> None:
    hook = cluster.work_dir / "package.sh"
    hook.write_text("#!/bin/sh\necho no space left\nexit 3\n")
    hook.chmod(0o755)
    cluster.submit(package_hook="./package.sh")
    cluster.plan("w1")
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert (ended.outcome, ended.exit_code) == (Outcome.FAILED, 3)
    assert ended.log_tail == "package hook ./package.sh failed with exit code 3\nno space left"


async def test_log_of_an_older_job_of_that_name_is_put_aside(cluster: Cluster) -> None:
    log = cluster.log_dir / "j" / "w1.log"
    log.parent.mkdir(parents=True)
    log.write_text("of the job before\n")
    (cluster.work_dir / "package.sh").write_text("echo the hook\n")
    cluster.submit(package_hook="package.sh", command=("sh", "-c", "echo the command; exit 1"))
    cluster.plan("w1")
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert log.read_text() == "the hook\nthe command\n"
    assert ended.log_tail == "the hook\nthe command"
    assert log.with_name("w1.log.old").read_text() == "of the job before\n"


async def test_command_that_does_not_exist(cluster: Cluster) -> None:
    cluster.submit(command=("no-such-command",))
    cluster.plan("w1")
    ended = await cluster.state("w1", WorkerState.EXITED)
    assert (ended.outcome, ended.exit_code) == (Outcome.FAILED, 127)
    assert "no-such-command" in ended.log_tail


@pytest.mark.parametrize(
    ("argv", "env", "directory", "problem"),
    [
        (("true",), {"A": "a\0b"}, "work", "embedded null byte"),
        (("true",), {"A=": "x"}, "work", "illegal environment variable name"),
        (("true", "\0"), {}, "work", "embedded null byte"),
        (("true",), {}, "a\0b", "embedded null byte"),
    ],
)
async def test_what_no_process_can_have_is_an_exit_of_its_worker(
    tmp_path: Path, argv: tuple[str, ...], env: dict[str, str], directory: str, problem: str
) -> None:
    async def drain(_job: str, _worker: str) -> None:
        raise AssertionError("nothing was started")

    command = Command(argv, env, tmp_path / directory, tmp_path / "w.log", make_cwd=True)
    spec, planned = JobSpec(job="j", command=("true",)), PlannedWorker("w1", "a", 0)
    launch = Launch(None, command)
    worker = Worker(node(), spec, planned, launch, 0.0, changed=lambda _: None, drain=drain)
    worker.start(0.0)
    assert worker.gone
    record = worker.record
    assert (record.outcome, record.exit_code, record.log_tail) == (Outcome.FAILED, 127, f"cannot start true: {problem}")


async def test_driver_that_cannot_be_started_is_a_death(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changed = asyncio.Event()
    driver = Driver("j", 0.0, SystemClock(), changed.set)
    driver.start(Command(["true"], {"A": "a\0b"}, tmp_path, tmp_path / "driver.log"))
    assert changed.is_set()
    assert (driver.view.running, driver.view.deaths) == (False, 1)
    assert "cannot be started: embedded null byte" in caplog.text


async def test_a_worker_that_reaches_the_gate_while_a_proxy_opens_may_leave(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.submit(command=("sleep", "600"))
    cluster.plan("w1")
    await until(lambda: (found := cluster.worker("w1")) is not None and found.pid is not None)
    cluster.store.suspend()
    cluster.plan()
    cluster.put(PATHS.rendezvous("j"), Rendezvous(generation=3, epoch=1, members=(Member("w0", "a", 0, 0, 1, 0, 1),)))

    async def opens(job: str) -> None:
        if worker := cluster.agent._workers.get((job, "w1")):
            worker.heard(Gate(last_generation=0), 0.0)

    monkeypatch.setattr(cluster.agent, "_open_proxy", opens)
    cluster.store.resume()
    await cluster.state("w1", WorkerState.LEAVING)
    await asyncio.sleep(0.3)
    await cluster.state("w1", WorkerState.LEAVING)


async def test_memory_is_made_ready_beside_the_loop(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(HeldFolders, "folder", lambda *_: threads.append(threading.current_thread()))
    cluster.submit()
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    assert threads
    assert threading.main_thread() not in threads


async def test_removed_directory_of_the_start_hurts_no_worker(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    cluster.submit()
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    with monkeypatch.context() as patch:
        patch.chdir(there)
        there.rmdir()
        cluster.plan("w1", "w2", driver_node="a")
        await cluster.said("gate", "w2", 0)
        await until(lambda: "the driver ended" in caplog.text)
        assert cluster.task is not None
        assert not cluster.task.done()
