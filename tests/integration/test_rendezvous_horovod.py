"""Two processes with Horovod itself come up through our proxy: the URL form, and the record before any key."""

import asyncio
import json
import sys
import uuid
from pathlib import Path

import msgspec
import pytest
from rendezvous_sim import SimJob

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import SystemClock
from edl_collective.coord.memory_store import MemoryStore
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import DriverRecord, NodeRecord, Rendezvous, decode, encode
from edl_collective.driver import world
from edl_collective.driver.process import DriverProcess
from edl_collective.driver.wire import driver_key
from edl_collective.messages import AgentMessage, Assigned, Interrupt
from jobclient.job_proxy import Answer, Waiting
from jobclient.rendezvous_http import Connection, RendezvousServer
from jobclient.rendezvous_proxy import JobProxy

pytest.importorskip("horovod", reason="Horovod is not installed: scripts/setup.sh builds it")
pytestmark = pytest.mark.integration

KEY = ClusterKey(b"a key for tests, thirty-two byte")
JOB = "train"
SCRIPT = Path(__file__).parents[1] / "horovod_worker.py"


class WatchedProxy(JobProxy):
    """Remembers, for each key that a worker puts, which generation the store held at that moment."""

    store: MemoryStore
    path: str

    def put(
        self, worker: str, generation: int, scope: str, key: str, value: bytes
    ) -> list[Answer[Connection]] | Waiting:
        found = self.store.get(self.path)
        assert found is not None
        self.puts.append((generation, decode(found.data, Rendezvous).generation))
        return super().put(worker, generation, scope, key, value)

    puts: list[tuple[int, int]]


class HorovodNode:
    """A node with one worker process."""

    def __init__(self, name: str, worker: str, store: MemoryStore, paths: Paths) -> None:
        self.name, self.worker = name, worker
        self.server = RendezvousServer()
        self.proxy = WatchedProxy(JOB, name, "1", KEY, self.send, self.server, lambda record: None)
        self.proxy.store, self.proxy.path, self.proxy.puts = store, paths.rendezvous(JOB), []
        self.ran: asyncio.Queue[tuple[int, int, int, float]] = asyncio.Queue()

    async def start(self) -> None:
        await self.server.start()
        await self.proxy.start()
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), self.name, stdin=pipe, stdout=pipe
        )
        self.reading = asyncio.create_task(self.read())

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            match line.decode().split():
                case ["gate", last]:
                    self.proxy.worker_gate(self.worker, int(last))
                case ["running", generation, rank, size, total]:
                    self.proxy.worker_running(self.worker, int(generation))
                    self.ran.put_nowait((int(generation), int(rank), int(size), float(total)))

    def send(self, worker: str, message: AgentMessage) -> None:
        assert worker == self.worker
        if isinstance(message, Assigned):
            self.write(json.dumps(msgspec.to_builtins(message)))
        elif isinstance(message, Interrupt):
            self.write("stop")

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self.reading
        await self.proxy.close()
        await self.server.close()


async def test_horovod_comes_up_twice_through_the_proxies() -> None:
    paths = Paths(f"/test-{uuid.uuid4().hex[:8]}")
    store = MemoryStore()
    sim = SimJob(store, paths, JOB)
    for name in ("a", "b"):
        record = NodeRecord(node=name, incarnation="1", address="127.0.0.1", port=1, slots=1)
        store.create(paths.node(name), encode(record), ephemeral=True)
    sim.plan({"w1": "a", "w2": "b"}, "start")
    nodes = [HorovodNode("a", "w1", store, paths), HorovodNode("b", "w2", store, paths)]
    for node in nodes:
        await node.start()
    driver = DriverProcess(store, paths, JOB, "a", "127.0.0.1", driver_key(KEY, JOB), SystemClock(), world.Config())
    driving = asyncio.create_task(driver.run())
    try:
        while (published := store.get(paths.driver(JOB))) is None:  # noqa: ASYNC110 - the store knows no event loop
            await asyncio.sleep(0.01)
        for node in nodes:
            node.proxy.driver_changed(decode(published.data, DriverRecord))
        async with asyncio.timeout(60):
            assert [await node.ran.get() for node in nodes] == [(1, 0, 2, 3.0), (1, 1, 2, 3.0)]
            nodes[0].write("stop")  # one comes back to the gate by itself, the other is interrupted
            assert [await node.ran.get() for node in nodes] == [(2, 0, 2, 3.0), (2, 1, 2, 3.0)]
    finally:
        driver.stop()
        assert await driving == 0
        for node in nodes:
            await node.close()
    puts = [pair for node in nodes for pair in node.proxy.puts]
    assert {generation for generation, _ in puts} == {1, 2}
    assert all(generation == stored for generation, stored in puts), "a key before its record"
