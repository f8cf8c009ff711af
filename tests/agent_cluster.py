"""A JobClient on a store in memory, with real shims and workers that speak the socket protocol, and a fake proxy.

For the tests of the agent: `running_agent` is one agent from start to end; `until` and `wait_for` wait for others.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import SystemClock
from edl_collective.coord.memory_store import MemoryStore, MemoryTree
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import (
    DriverRecord,
    Event,
    JobSpec,
    NodeRecord,
    Plan,
    PlannedWorker,
    Record,
    WorkerRecord,
    WorkerState,
    decode,
    encode,
)
from edl_collective.coord.signing import SpecSigner
from edl_collective.messages import (
    AgentMessage,
    decode_agent_line,
)
from jobclient.agent import Agent
from jobclient.config import Config, parse

KEY = ClusterKey(b"0123456789abcdef")
SIGNER = SpecSigner(KEY)
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
    if message["type"] == "Abort" and mode in ("busy", "stuck"):
        say("HeardAbort", generation=generation, inside=mode == "stuck")
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


def config_in(tmp_path: Path, *options: str) -> Config:
    (tmp_path / "work").mkdir(exist_ok=True)
    argv = ["--node", "a", "--slots", "2", "--log-dir", str(tmp_path / "logs"), "--work-dir", str(tmp_path / "work")]
    argv += ["--drain-timeout", "0.3"]  # nobody plans the workers away at the end of a test
    return parse([*argv, *options], {"PATH": os.environ["PATH"], "HOME": str(tmp_path)})


def node(incarnation: str = "life-1") -> NodeRecord:
    return NodeRecord(node="a", incarnation=incarnation, address="127.0.0.1", port=1, slots=2)


class ClockAhead(SystemClock):
    """The clock of this machine, which a test can put forward."""

    ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


class Cluster:
    """One running agent, its store, and the hand of the JobServer."""

    def __init__(
        self,
        tmp_path: Path,
        tree: MemoryTree | None = None,
        store: MemoryStore | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self.tree = tree or MemoryTree()
        self.server = MemoryStore(self.tree)
        self.store = store or MemoryStore(self.tree)
        self.work_dir = tmp_path / "work"
        self.log_dir = tmp_path / "logs"
        #: the newest
        self.proxy: FakeProxy | None = None
        self.clock = ClockAhead()
        self.agent = Agent(config_in(tmp_path, *options), node(), self.store, KEY, self._make_proxy, self.clock)
        self.task: asyncio.Task[None] | None = None
        self.revision = 0

    def _make_proxy(self, job: str, send: Callable[[str, AgentMessage], None]) -> FakeProxy:
        assert job == "j"
        assert self.proxy is None or self.proxy.closed, "one proxy a job"
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
        data = SIGNER.sign(path, record) if isinstance(record, JobSpec) else encode(record, path)
        self.server.set(path, data, found.version if found else None)

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
        async with asyncio.timeout(60):
            await self.task


@contextlib.asynccontextmanager
async def running_agent(tmp_path: Path, *options: str) -> AsyncIterator[Cluster]:
    """A cluster whose agent runs with these options; at the end it has stopped all that it started."""
    cluster = Cluster(tmp_path, options=options)
    cluster.start()
    yield cluster
    if cluster.task is not None and not cluster.task.done():
        await cluster.close()
    assert not processes_below(cluster.work_dir), "a worker outlived its JobClient"


def processes_below(directory: Path) -> list[int]:
    """Processes that run in `directory` or below."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(directory):
                found.append(int(entry.name))
    return found


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is waited for is in other processes)
            await asyncio.sleep(0.01)


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "still waiting"
        time.sleep(0.02)
