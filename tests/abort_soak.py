"""Random aborts against real Horovod processes: none may crash, hang or leak descriptors.

    python tests/abort_soak.py [--aborts 300] [--workers 3] [--seed N]

The workers use the product's gate, link and abort switch; proxy and driver are real, ZooKeeper is the store in memory.
In each round the world is told, at a random moment from its assignment on, that it lost a member: while it connects,
just after, or while it reduces. Nobody has died, so all come back to the gate and the next round begins. Workers that
are in init are not killed here, as a JobClient would: their switch has to wait for init's end by itself. One that does
not come back is killed and replaced, as by a JobClient, and counted.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rendezvous_sim import SimJob

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import SystemClock
from edl_collective.coord.memory_store import MemoryStore
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import DriverRecord, NodeRecord, decode, encode
from edl_collective.driver import world
from edl_collective.driver.process import DriverProcess
from edl_collective.driver.wire import driver_key
from edl_collective.messages import Abort, AgentMessage, Assigned, Gate, Happened, Running, WorkerMessage
from jobclient.rendezvous_http import RendezvousServer
from jobclient.rendezvous_proxy import JobProxy
from jobclient.worker_link import WorkerLink

KEY = ClusterKey(b"a key for tests, thirty-two byte")
JOB, NODE = "soak", "a"
SCRIPT = Path(__file__).with_name("abort_worker.py")
#: gloo's own time-out in the workers: an abort that did not reach all sockets ends with it
GLOO_TIMEOUT_S = 5.0
#: who has not come back after this time is replaced
RETURN_S = 15.0
#: for the processes to import torch
START_S = 300.0
#: aborts fall into this time after the assignment; init takes about a third of it
SPAN_S = 0.2


@dataclass
class Report:
    aborts: int = 0
    #: aborts that came while some worker was in init
    during_init: int = 0
    #: rounds that ended by gloo's time-out, not by the abort
    slow: int = 0
    #: workers that did not come back and were replaced
    replaced: int = 0
    #: from the abort to the last worker at the gate
    median_s: float = 0.0
    longest_s: float = 0.0
    #: open descriptors of each worker after the first tenth of the rounds and at the end
    fds_first: dict[str, int] = field(default_factory=dict)
    fds_last: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0


class Died(Exception):
    """Raised when a worker has ended."""


class Node:
    """One node with all the workers; `at_gate` and `initialising` follow what they say."""

    def __init__(self, workers: list[str]) -> None:
        self.workers = workers
        self.generation = 0
        self.at_gate: set[str] = set()
        self.initialising: set[str] = set()
        self.fds: dict[str, int] = {}
        self.changed = asyncio.Event()
        self.server = RendezvousServer()
        self.link = WorkerLink(NODE, self._token, self._heard)
        self.proxy = JobProxy(JOB, NODE, "1", KEY, self._send, self.server, lambda record: None)
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    async def start(self) -> None:
        await self.server.start()
        await self.link.start()
        await self.proxy.start()
        for worker in self.workers:
            await self.add(worker)

    async def add(self, worker: str) -> None:
        environ = {
            **os.environ,
            "EDL_JOB": JOB,
            "EDL_WORKER": worker,
            "EDL_NODE": NODE,
            "EDL_SLOT": "0",
            "EDL_WORKER_TOKEN": KEY.worker_token(JOB, worker),
            "EDL_AGENT_SOCKET": str(self.link.path),
            "HOROVOD_HOSTNAME": NODE,
            "HOROVOD_ELASTIC": "1",
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
            "HOROVOD_GLOO_IFACE": "lo",
            "HOROVOD_GLOO_TIMEOUT_SECONDS": f"{GLOO_TIMEOUT_S:g}",
            "HOROVOD_CACHE_CAPACITY": "0",
            "HOROVOD_LOG_LEVEL": "fatal",
        }
        self.processes[worker] = await asyncio.create_subprocess_exec(sys.executable, str(SCRIPT), env=environ)

    async def remove(self, worker: str) -> None:
        """SIGKILL, and the news of it."""
        process = self.processes.pop(worker)
        process.kill()
        await process.wait()
        self.workers.remove(worker)
        self.initialising.discard(worker)
        self.fds.pop(worker, None)
        self.proxy.worker_exited(worker, "did not come back")

    async def close(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()
        await self.proxy.close()
        await self.link.close()
        await self.server.close()

    async def until(self, met: Callable[[], bool], limit_s: float) -> bool:
        """Until `met`; False after `limit_s`. Raises Died."""
        ends = [asyncio.create_task(process.wait()) for process in self.processes.values()]
        try:
            async with asyncio.timeout(limit_s):
                while not met():
                    self.changed.clear()
                    change = asyncio.create_task(self.changed.wait())
                    await asyncio.wait([change, *ends], return_when=asyncio.FIRST_COMPLETED)
                    change.cancel()
                    self._check_alive()
            return True
        except TimeoutError:
            return False
        finally:
            for end in ends:
                end.cancel()

    def back(self, generation: int) -> bool:
        return self.at_gate >= set(self.workers) or self.generation > generation

    def _check_alive(self) -> None:
        ended = {w: p.returncode for w, p in self.processes.items() if p.returncode is not None}
        if ended:
            raise Died(f"in generation {self.generation}: {ended}")

    def abort(self, generation: int) -> None:
        for worker in self.workers:
            self.link.send(JOB, worker, Abort(generation=generation))

    def _token(self, job: str, worker: str) -> str | None:
        return KEY.worker_token(job, worker)

    def _send(self, worker: str, message: AgentMessage) -> None:
        if isinstance(message, Assigned):
            self.generation = message.generation
            self.at_gate.discard(worker)
            self.initialising.add(worker)
            self.changed.set()
        self.link.send(JOB, worker, message)

    def _heard(self, _job: str, worker: str, message: WorkerMessage) -> None:
        match message:
            case Gate(last_generation=last):
                self.initialising.discard(worker)
                self.at_gate.add(worker)
                self.proxy.worker_gate(worker, last)
            case Running(generation=generation):
                self.initialising.discard(worker)
                self.proxy.worker_running(worker, generation)
            case Happened(text=text):
                self.fds[worker] = int(text)
        self.changed.set()


async def soak(aborts: int, workers: int, seed: int) -> Report:
    """Raises Died when a worker has crashed, or when no world comes any more."""
    randomly, report, began = random.Random(seed), Report(), time.monotonic()
    paths, store = Paths(f"/soak-{uuid.uuid4().hex[:8]}"), MemoryStore()
    store.create(
        paths.node(NODE),
        encode(NodeRecord(node=NODE, incarnation="1", address="127.0.0.1", port=1, slots=workers)),
        ephemeral=True,
    )
    names = [f"w{number + 1}" for number in range(workers)]
    sim = SimJob(store, paths, JOB)
    sim.plan(dict.fromkeys(names, NODE), "start")
    node = Node(names)
    driver = DriverProcess(
        *(store, paths, JOB, NODE, "127.0.0.1", driver_key(KEY, JOB), SystemClock()), world.Config(form_grace_s=60.0)
    )
    driving = asyncio.create_task(driver.run())
    times: list[float] = []
    generation = 0
    try:
        await node.start()
        while (published := store.get(paths.driver(JOB))) is None:  # noqa: ASYNC110 - the store knows no event loop
            await asyncio.sleep(0.01)
        node.proxy.driver_changed(decode(published.data, DriverRecord))
        while report.aborts < aborts:
            before = generation
            if not await node.until(lambda: node.generation > before, START_S):  # noqa: B023 - awaited here
                raise Died(f"nothing comes after generation {before}")
            generation = node.generation
            await asyncio.sleep(randomly.uniform(0.0, SPAN_S))
            report.during_init += bool(node.initialising)
            aborted = time.monotonic()
            node.abort(generation)
            if not await node.until(lambda: node.back(generation), RETURN_S):  # noqa: B023 - awaited here
                for worker in set(node.workers) - node.at_gate:
                    report.replaced += 1
                    await node.remove(worker)
                    node.workers.append(f"w{workers + report.replaced}")
                    await node.add(node.workers[-1])
                sim.plan(dict.fromkeys(node.workers, NODE), "replaced")
            times.append(time.monotonic() - aborted)
            report.aborts += 1
            if report.aborts == max(1, aborts // 10):
                report.fds_first = dict(node.fds)
    finally:
        await node.close()
        driver.stop()
        await driving
    report.slow = sum(took >= GLOO_TIMEOUT_S / 2 for took in times)
    report.median_s, report.longest_s = round(statistics.median(times), 3), round(max(times), 3)
    report.fds_last, report.wall_s = dict(node.fds), round(time.monotonic() - began, 1)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--aborts", type=int, default=300)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(json.dumps(asdict(asyncio.run(soak(args.aborts, args.workers, args.seed)))))


if __name__ == "__main__":
    main()
