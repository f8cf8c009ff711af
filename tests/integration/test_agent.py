"""The JobClient on a store in memory, with real shims and workers that speak the socket protocol, and a fake proxy."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec.structs import replace
from trees import delete_all

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import SystemClock
from edl_collective.coord.errors import Disconnected
from edl_collective.coord.memory_store import MemoryStore, MemoryTree
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import (
    DriverRecord,
    Event,
    JobSpec,
    Member,
    NodeRecord,
    Outcome,
    Plan,
    PlannedWorker,
    Progress,
    Record,
    Rendezvous,
    WorkerRecord,
    WorkerState,
    decode,
    encode,
)
from edl_collective.coord.zk_store import ZkStore
from edl_collective.messages import (
    Abort,
    AgentMessage,
    Finished,
    Gate,
    Interrupt,
    Leave,
    WorkerHello,
    WorkerMessage,
    decode_agent_line,
    encode_line,
)
from jobclient import node_api
from jobclient.agent import Agent
from jobclient.config import Config, parse
from jobclient.driver_process import Driver
from jobclient.node_api import NodeApi, make_app
from jobclient.processes import Command
from jobclient.worker import Launch, Worker
from jobclient.worker_link import MAX_LINE_BYTES, WorkerLink

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
KEY = ClusterKey(b"0123456789abcdef")
PATHS = Paths()

#: a worker: hello, gate, then what it is told; MODE says what it does once it is in a world
WORKER = """
import json, os, signal, socket, subprocess, sys, time
link = socket.socket(socket.AF_UNIX)
link.connect(os.environ["EDL_AGENT_SOCKET"])
lines = link.makefile("r")
def say(type, **fields):
    link.sendall(json.dumps({"type": type, **fields}).encode() + b"\\n")
name, mode = os.environ["EDL_WORKER"], os.environ["MODE"]
say("WorkerHello", job=os.environ["EDL_JOB"], worker=name, token=os.environ["EDL_WORKER_TOKEN"], pid=os.getpid())
print("begin", name, "in", os.getcwd(), flush=True)
say("Gate", last_generation=0)
for line in lines:
    message = json.loads(line)
    generation = message.get("generation", 0)
    if message["type"] == "Leave":
        sys.exit(0)
    if message["type"] == "Interrupt":
        say("Gate", last_generation=generation)
    if message["type"] == "Assigned":
        if mode == "init":
            signal.pause()
        say("Running", generation=generation)
        for step in range(1, 4):
            say("Report", generation=generation, world_size=message["size"], epoch=1, step=step)
        say("Happened", kind="epoch", text="epoch 1 completed", fields={"epoch": 1})
        if mode == "finish":
            say("Finished", generation=generation)
            sys.exit(0)
        if mode == "crash":
            raise SystemExit("the reason of the crash")
        if mode == "family":
            print("child", subprocess.Popen(["sleep", "600"]).pid, flush=True)
"""


class FakeProxy:
    """Remembers what the agent tells it; tests speak for the driver through `send`."""

    def __init__(self, send: Callable[[str, AgentMessage], None]) -> None:
        self.send = send
        self.said: list[tuple[object, ...]] = []
        self.driver: DriverRecord | None = None
        self.closed = False

    def worker_gate(self, worker: str, last_generation: int) -> None:
        self.said.append(("gate", worker, last_generation))

    def worker_running(self, worker: str, generation: int) -> None:
        self.said.append(("running", worker, generation))

    def worker_finished(self, worker: str) -> None:
        self.said.append(("finished", worker))

    def worker_exited(self, worker: str, detail: str) -> None:
        self.said.append(("exited", worker, detail))

    def driver_changed(self, driver: DriverRecord | None) -> None:
        self.driver = driver

    async def start(self) -> None:
        self.said.append(("start",))

    async def close(self) -> None:
        self.closed = True


def config_in(tmp_path: Path) -> Config:
    (tmp_path / "work").mkdir(exist_ok=True)
    argv = ["--node", "a", "--slots", "2", "--log-dir", str(tmp_path / "logs"), "--work-dir", str(tmp_path / "work")]
    return parse(argv, {"PATH": os.environ["PATH"], "HOME": str(tmp_path)})


def node(incarnation: str = "life-1") -> NodeRecord:
    return NodeRecord(node="a", incarnation=incarnation, address="127.0.0.1", port=1, slots=2)


class Cluster:
    """One running agent, its store, and the hand of the JobServer."""

    def __init__(self, tmp_path: Path, tree: MemoryTree | None = None, store: MemoryStore | None = None) -> None:
        self.tree = tree or MemoryTree()
        self.server = MemoryStore(self.tree)
        self.store = store or MemoryStore(self.tree)
        self.work_dir = tmp_path / "work"
        self.log_dir = tmp_path / "logs"
        self.proxy: FakeProxy | None = None
        self.agent = Agent(config_in(tmp_path), node(), self.store, KEY, self._make_proxy)
        self.task: asyncio.Task[None] | None = None
        self.revision = 0

    def _make_proxy(self, job: str, send: Callable[[str, AgentMessage], None]) -> FakeProxy:
        assert job == "j"
        assert self.proxy is None, "one proxy a job"
        self.proxy = FakeProxy(send)
        return self.proxy

    def start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.agent.run())

    def submit(self, mode: str = "wait", **fields: Any) -> None:
        spec = JobSpec(job="j", command=("python3", "-c", WORKER), max_np=8, env={"MODE": mode}, stop_timeout_s=0.5)
        self.put(PATHS.spec("j"), replace(spec, **fields))

    def plan(self, *workers: str, **fields: Any) -> None:
        self.revision += 1
        planned = tuple(PlannedWorker(worker, "a", slot) for slot, worker in enumerate(workers))
        record = Plan(
            revision=self.revision, workers=planned, driver_node="b", reason="t", next_worker=9, leader_epoch=1
        )
        self.put(PATHS.plan("j"), replace(record, **fields))

    def put(self, path: str, record: Record) -> None:
        found = self.server.get(path)
        self.server.set(path, encode(record, path), found.version if found else None)

    def worker(self, name: str) -> WorkerRecord | None:
        found = self.server.get(PATHS.worker("j", name))
        return decode(found.data, WorkerRecord) if found else None

    async def state(self, name: str, state: WorkerState) -> WorkerRecord:
        def reached() -> bool:
            record = self.worker(name)
            return record is not None and record.state is state

        await until(reached)
        record = self.worker(name)
        assert record is not None
        return record

    def events(self) -> list[Event]:
        names = self.server.children(PATHS.events("j"))
        found = [self.server.get(f"{PATHS.events('j')}/{name}") for name in names]
        return [decode(value.data, Event) for value in found if value is not None]

    async def said(self, *words: object) -> None:
        await until(lambda: self.proxy is not None and words in self.proxy.said)

    def assign(self, name: str, generation: int, rank: int = 0) -> None:
        one = {"size": 1, "local_size": 1, "cross_size": 1, "local_rank": 0, "cross_rank": 0}
        message = decode_agent_line(
            msgspec.json.encode(
                {"type": "Assigned", "epoch": 1, "generation": generation, "rank": rank, "rendezvous": "r"} | one
            )
        )
        assert self.proxy is not None
        self.proxy.send(name, message)

    async def close(self) -> None:
        assert self.task is not None
        self.agent.close()
        async with asyncio.timeout(20):
            await self.task


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    running = Cluster(tmp_path)
    running.start()
    yield running
    if running.task is not None and not running.task.done():
        await running.close()
    assert not processes_below(running.work_dir), "a worker outlived its JobClient"


def processes_below(directory: Path) -> list[int]:
    """Processes that run in `directory` or below."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(directory):
                found.append(int(entry.name))
    return found


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is waited for is in other processes)
            await asyncio.sleep(0.01)


async def test_a_worker_in_init_is_killed_when_its_generation_is_aborted(cluster: Cluster) -> None:
    cluster.submit("init")
    cluster.plan("w1")
    await cluster.said("gate", "w1", 0)
    cluster.assign("w1", 5)
    assert cluster.proxy is not None
    cluster.proxy.send("w1", Abort(generation=4))
    cluster.proxy.send("w1", Abort(generation=5))
    await cluster.said("exited", "w1", "killed by SIGKILL")
    assert (await cluster.state("w1", WorkerState.EXITED)).outcome is Outcome.FAILED


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
    began = time.monotonic()
    os.kill(running.pid, signal.SIGKILL)
    await cluster.said("exited", "w1", "killed by SIGKILL")
    assert time.monotonic() - began < 1.0
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

    command = Command(argv, env, tmp_path / directory, tmp_path / "w.log")
    spec, planned = JobSpec(job="j", command=("true",)), PlannedWorker("w1", "a", 0)
    launch = Launch(None, command, make_directory=True)
    worker = Worker(node(), spec, planned, launch, 0.0, changed=lambda _: None, drain=drain)
    worker.start(0.0)
    assert worker.gone
    record = worker.record
    assert (record.outcome, record.exit_code, record.log_tail) == (Outcome.FAILED, 127, f"cannot start true: {problem}")


async def test_driver_that_cannot_be_started_is_a_death(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changed = asyncio.Event()
    driver = Driver("j", SystemClock(), changed.set)
    driver.start(Command(["true"], {"A": "a\0b"}, tmp_path, tmp_path / "driver.log"))
    assert changed.is_set()
    assert (driver.view.running, driver.view.deaths) == (False, 1)
    assert "cannot be started: embedded null byte" in caplog.text


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
    async with asyncio.timeout(2):
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
from test_agent import Cluster
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


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "still waiting"
        time.sleep(0.02)


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


async def test_link_speaks_only_for_proven_workers_and_the_newest_connection() -> None:
    heard: list[WorkerMessage] = []
    link = WorkerLink("a", lambda _, worker: "t" if worker == "w1" else None, lambda _j, _w, m: heard.append(m))
    await link.start()
    hello = WorkerHello(job="j", worker="w1", token="t", pid=1)

    async def connect(*lines: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(link.path)
        writer.writelines(lines)
        return reader, writer

    refused = (
        encode_line(replace(hello, token="other")),
        encode_line(replace(hello, worker="w2")),
        encode_line(Gate(last_generation=0)),
        b"not json\n",
        b"",
        b"x" * (MAX_LINE_BYTES + 1),
    )
    for line in refused:
        reader, writer = await connect(line)
        if not line:
            writer.write_eof()
        with contextlib.suppress(ConnectionError):  # what was not read makes it a reset
            assert await reader.read() == b""
        writer.close()
    assert heard == []
    assert not link.send("j", "w1", Leave())

    first, first_writer = await connect(encode_line(hello))
    await until(lambda: len(heard) == 1)
    second, second_writer = await connect(encode_line(hello), encode_line(Gate(last_generation=3)))
    await until(lambda: Gate(last_generation=3) in heard)
    assert await first.read() == b""
    assert link.send("j", "w1", Leave(reason="r"))
    assert decode_agent_line(await second.readline()) == Leave(reason="r")

    second_writer.write(encode_line(Finished(generation=3)))
    second_writer.close()
    await link.drained("j", "w1")
    assert heard[-1] == Finished(generation=3)
    assert not link.send("j", "w1", Leave())
    first_writer.close()
    await link.close()
    assert not link.path.exists()


async def test_logs_over_http(tmp_path: Path) -> None:
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "w1.log").write_bytes(b"0123456789")
    (tmp_path / "secret.log").write_text("no")
    api = NodeApi(make_app(tmp_path, KEY.api_token, "a"), "127.0.0.1", 0)
    serving = asyncio.get_running_loop().create_task(api.serve())
    headers = {"Authorization": f"Bearer {KEY.api_token}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}", headers=headers) as client:
        assert (await client.get("/health")).json() == {"node": "a", "ok": True}
        part = await client.get("/logs/j/w1", params={"offset": 3, "limit": 4})
        assert (part.content, part.headers["X-EDL-Next-Offset"]) == (b"3456", "7")
        end = await client.get("/logs/j/w1", params={"offset": 10})
        assert (end.status_code, end.content, end.headers["X-EDL-Next-Offset"]) == (200, b"", "10")
        assert (await client.get("/logs/j/w1", headers={"Authorization": "Bearer x"})).status_code == 401
        assert (await client.get("/logs/j/w2")).status_code == 404
        for path in ("/logs/../secret", "/logs/%2e%2e/secret", "/logs/j/..%2f..%2fsecret", "/logs/j/%2e%2e"):
            assert (await client.get(path)).status_code in (400, 404)
        for query in ("offset=-1", "offset=x", "limit=1e3"):
            answer = await client.get(f"/logs/j/w1?{query}")
            assert answer.status_code == 400
            assert query.partition("=")[0] in answer.json()["error"]
    api.close()
    await serving


async def test_log_on_a_slow_disk_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, may_read = threading.Event(), threading.Event()

    def slow(_path: Path, _offset: int, _limit: int) -> bytes:
        reads.set()
        assert may_read.wait(10)
        return b"at last"

    monkeypatch.setattr(node_api, "_read", slow)
    app = make_app(tmp_path, KEY.api_token, "a")
    headers = {"Authorization": f"Bearer {KEY.api_token}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a", headers=headers) as client:
        log = asyncio.get_running_loop().create_task(client.get("/logs/j/w1"))
        await until(reads.is_set)
        assert (await client.get("/health")).status_code == 200
        assert not log.done()
        may_read.set()
        assert (await log).content == b"at last"


# ---- the program itself, on a real ZooKeeper ----------------------------------------------------------------------


def start_client(tmp_path: Path, *argv: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "EDL_KEY_FILE": str(tmp_path / "key"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jobclient", "--log-dir", str(tmp_path / "logs"), *argv]
    return subprocess.Popen(command, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True)


def test_jobclient_submits_its_job_registers_and_signs_off(tmp_path: Path, zookeeper: str) -> None:
    paths = Paths("/test-jobclient")
    store = ZkStore(zookeeper).start()
    options = ("--zookeeper", zookeeper, "--zookeeper-root", paths.root, "--node", "a", "--slots", "3")
    client = start_client(tmp_path, *options, "--job_id", "mine", "train.py", "--epochs", "3")
    try:
        wait_for(lambda: store.get(paths.node("a")) is not None)
        spec, found = store.get(paths.spec("mine")), store.get(paths.node("a"))
        assert spec is not None
        assert found is not None
        assert decode(spec.data, JobSpec).command == ("python3", "train.py", "--epochs", "3")
        record = decode(found.data, NodeRecord)
        assert record.slots == 3
        assert httpx.get(f"http://127.0.0.1:{record.port}/health").json() == {"node": "a", "ok": True}
        client.send_signal(signal.SIGTERM)
        _, said = client.communicate(timeout=20)
        assert client.returncode == 0, said
        assert "Traceback" not in said
        assert store.get(paths.node("a")) is None
    finally:
        client.kill()
        client.communicate()
        store.close()


def test_signal_ends_a_jobclient_whose_name_is_taken(tmp_path: Path, zookeeper: str) -> None:
    paths = Paths("/test-taken")
    store = ZkStore(zookeeper).start()
    store.create(paths.node("a"), encode(node("life-0")), ephemeral=True)
    client = start_client(tmp_path, "--zookeeper", zookeeper, "--zookeeper-root", paths.root, "--node", "a")
    try:
        assert client.stderr is not None
        said = ""
        while "held by another session" not in said:
            said = client.stderr.readline()
            assert said, "the JobClient ended"
        client.send_signal(signal.SIGTERM)
        _, said = client.communicate(timeout=10)
        assert (client.returncode, "Traceback" in said) == (0, False), said
    finally:
        client.kill()
        client.communicate()
        store.close()


@pytest.mark.parametrize(
    ("argv", "knob"),
    [
        (("--zookeeper", "127.0.0.1:1", "--zookeeper-wait", "0.5"), "--zookeeper / EDL_ZOOKEEPER"),
        (("--port", "1", "--address", "192.0.2.1"), "--address 192.0.2.1 --port 1"),
        (("--slots", "many"), "--slots is 'many'"),
    ],
)
def test_what_the_user_can_put_right_is_one_sentence(tmp_path: Path, argv: tuple[str, ...], knob: str) -> None:
    client = start_client(tmp_path, *argv)
    _, said = client.communicate(timeout=20)
    assert client.returncode == 2
    assert knob in said
    assert len(said.strip().splitlines()) == 1, said
