"""One rendezvous of many workers: how long it takes, and what driver, proxies and clients spend on it.

    PYTHONPATH=.:scripts:tests python -m bench.rendezvous 64

The driver and each node's proxy are the real ones, in processes of their own, with a real ZooKeeper; the workers are
threads of rendezvous_client.cc, which sends the requests of Horovod's C++ store without torch. A run lasts from the
last worker at the gate until the last one is through. All of it shares this machine: with one node per machine the
proxies and their workers would not wait for each other.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rendezvous_sim import SimJob

from bench.rendezvous_node import JOB, KEY
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import NodeRecord, encode
from edl_collective.coord.zk_store import ZkStore
from edl_collective.messages import Assigned, decode_agent_line
from edl_collective.topology import place_for_horovod
from jobserver.local_zookeeper import LocalZooKeeper

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("rendezvous_client.cc")
COMPILE = ("g++", "-std=c++17", "-O2", "-pthread")
PER_NODE = 8
DEADLINE_S = 300.0
#: a worker's line of output can be held back by as many others as there are workers
LINE_BYTES = 1 << 20


class RendezvousError(Exception):
    """Raised when a rendezvous did not come about, with what the process at fault said."""


@dataclass(frozen=True, slots=True)
class Run:
    """One rendezvous: `wall_s` from the last worker at the gate to the last one through; the rest is CPU and counts."""

    wall_s: float
    driver_cpu_s: float
    #: mean and most of the nodes' proxies
    proxy_cpu_s: float
    proxy_most_cpu_s: float
    client_cpu_s: float
    requests: int
    #: GETs answered "not found" and requests that were sent again; bytes of the answers
    not_found: int
    retries: int
    bytes: int


# ---- the clients ---------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Where scripts/setup.sh keeps what it compiles."""
    return Path(os.environ.get("EDL_CACHE_DIR") or Path.home() / ".cache" / "edl")


def build_client(cache: Path | None = None) -> Path:
    """The simulated workers' program, compiled unless this version of it is in the cache. Raises RendezvousError."""
    name = hashlib.sha256(" ".join(COMPILE).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    program = (cache or cache_dir()) / f"rendezvous-client-{name}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        half = program.with_name(f"{program.name}.{os.getpid()}")
        try:
            done = subprocess.run([*COMPILE, "-o", half, SOURCE], capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise RendezvousError("no g++ to compile the simulated workers; scripts/setup.sh installs it") from error
        if done.returncode:
            raise RendezvousError(f"{SOURCE.name} does not compile: {done.stderr[-2000:]}")
        half.rename(program)
    return program


#: what a worker tells Horovod of its place, in the order in which rendezvous_client.cc reads it
_TOLD = tuple(
    f"HOROVOD_{name}" for name in ("HOSTNAME", "RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
)


@dataclass
class Clients:
    """The process of the simulated workers."""

    process: asyncio.subprocess.Process
    results: list[tuple[int, int, int, int]] = field(default_factory=list)

    def enter(self, node: str, worker: str, place: Assigned) -> None:
        """`worker` goes from the gate into the rendezvous."""
        told = place_for_horovod(place, node, worker, {})
        line = " ".join((*(told[name] for name in _TOLD), str(place.generation), place.rendezvous))
        line = f"{worker} {line}"
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    async def through(self) -> str:
        """The next worker that is through. Raises RendezvousError."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise RendezvousError(f"the simulated workers ended with exit status {await self.process.wait()}")
        worker, requests, not_found, retries, size = line.decode().split()
        self.results.append((int(requests), int(not_found), int(retries), int(size)))
        return worker


# ---- the nodes ------------------------------------------------------------------------------------------------------


class Node:
    """A process of rendezvous_node."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name, self.process = name, process

    def tell(self, what: str, *arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([what, *arguments]).encode() + b"\n")

    async def read(self, clients: Clients) -> None:
        """Send whoever is assigned into the rendezvous."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            worker, message = json.loads(line)
            place = decode_agent_line(message.encode())
            if not isinstance(place, Assigned):
                raise RendezvousError(f"{worker} was told {place}")
            clients.enter(self.name, worker, place)


# ---- a run ----------------------------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process of ours (clock_getcpuclockid(3): finer than the ticks of /proc)."""
    return time.clock_gettime((~pid << 3) | 2)


@contextlib.asynccontextmanager
async def started(*command: object, stderr: int | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child with pipes that finds our modules, killed at the end."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdin=pipe, stdout=pipe, stderr=stderr, cwd=ROOT, env=env, limit=LINE_BYTES
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def rendezvous(hosts: str, size: int, per_node: int) -> Run:
    """Form one world of `size` workers. Raises RendezvousError, TimeoutError after DEADLINE_S."""
    program = build_client()
    paths = Paths(f"/scale-{uuid.uuid4().hex[:8]}")
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(contextlib.closing(ZkStore(hosts).start()))
        sim = SimJob(store, paths, JOB)
        driver = await stack.enter_async_context(_driver(hosts, paths))
        nodes = []
        for i in range(-(-size // per_node)):
            name = f"n{i}"
            serve = started(sys.executable, "-m", "bench.rendezvous_node", name)
            nodes.append(Node(name, await stack.enter_async_context(serve)))
            record = NodeRecord(node=name, incarnation="1", address="127.0.0.1", port=1, slots=per_node)
            store.create(paths.node(name), encode(record), ephemeral=True)
        clients = Clients(await stack.enter_async_context(started(program)))
        async with asyncio.timeout(DEADLINE_S):
            while (found := store.get(paths.driver(JOB))) is None:  # noqa: ASYNC110 - the store knows no event loop
                await asyncio.sleep(0.01)
            for node in nodes:
                node.tell("driver_changed", found.data.decode())
            planned = {f"w{i + 1}": nodes[i // per_node] for i in range(size)}
            sim.plan({worker: node.name for worker, node in planned.items()}, "start")
            return await _form(planned, driver.pid, clients)


@contextlib.asynccontextmanager
async def _driver(hosts: str, paths: Paths) -> AsyncIterator[asyncio.subprocess.Process]:
    with tempfile.TemporaryDirectory() as folder:
        key_file = Path(folder) / "key"
        key_file.touch(mode=0o600)
        key_file.write_bytes(KEY.secret)
        command = ("-m", "edl_collective.driver", "--zookeeper", hosts, "--root", paths.root, "--job", JOB)
        options = ("--node", "n0", "--key-file", key_file)
        async with started(sys.executable, *command, *options, stderr=subprocess.DEVNULL) as process:
            yield process


async def _form(planned: dict[str, Node], driver: int, clients: Clients) -> Run:
    """All but one worker come to the gate; then the last one, and the clock runs."""
    nodes = list(dict.fromkeys(planned.values()))
    readers = [asyncio.create_task(node.read(clients)) for node in nodes]
    *early, last = planned
    for worker in early:
        planned[worker].tell("worker_gate", worker, 0)
    await asyncio.sleep(1.0)  # nothing says when the driver has heard of all; what is late only lengthens the run
    pids = [driver, clients.process.pid, *(node.process.pid for node in nodes)]
    before = [cpu_s(pid) for pid in pids]
    began_s = time.monotonic()
    planned[last].tell("worker_gate", last, 0)
    waiting = asyncio.create_task(_through(planned, clients))
    done, _ = await asyncio.wait({waiting, *readers}, return_when=asyncio.FIRST_COMPLETED)
    wall_s = time.monotonic() - began_s
    for task in done:
        task.result()
    if not waiting.done():
        raise RendezvousError("a node's process has ended")
    spent = [cpu_s(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
    proxies = spent[2:]
    for task in readers:
        task.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    requests, not_found, retries, size = map(sum, zip(*clients.results, strict=True))
    return Run(wall_s, spent[0], statistics.mean(proxies), max(proxies), spent[1], requests, not_found, retries, size)


async def _through(planned: dict[str, Node], clients: Clients) -> None:
    for _ in planned:
        worker = await clients.through()
        planned[worker].tell("worker_running", worker, 1)


# ---- the command ----------------------------------------------------------------------------------------------------

#: fields of Run that become rows, and their units
METRICS = {
    "wall_s": "s",
    "driver_cpu_s": "s",
    "proxy_cpu_s": "s",
    "proxy_most_cpu_s": "s",
    "client_cpu_s": "s",
    "requests": "requests",
    "retries": "requests",
}


def rows(size: int, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of a bench: one for each metric, with the median and every run."""
    found = []
    for metric, unit in METRICS.items():
        values = [round(getattr(run, metric), 4) for run in runs]
        row = {"case": f"rendezvous-{size}", "system": "edl", "metric": metric, "unit": unit}
        found.append({**row, "median": statistics.median(values), "runs": values})
    return found


@contextlib.contextmanager
def zookeeper(hosts: str | None) -> Iterator[str]:
    """`hosts`, or those of a private server."""
    if hosts:
        yield hosts
        return
    with tempfile.TemporaryDirectory() as data, LocalZooKeeper(Path(data)) as server:
        yield server.hosts


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.rendezvous", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("workers", type=int)
    parser.add_argument("--nodes", type=int, help=f"default: one for each {PER_NODE} workers")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--zookeeper", help="hosts; a private server is started without it")
    options = parser.parse_args()
    if options.workers < 1 or options.runs < 1 or (options.nodes is not None and options.nodes < 1):
        parser.error("workers, --nodes and --runs must be at least 1")
    per_node = -(-options.workers // options.nodes) if options.nodes else PER_NODE
    runs = []
    with zookeeper(options.zookeeper) as hosts:
        for _ in range(options.runs):
            try:
                runs.append(asyncio.run(rendezvous(hosts, options.workers, per_node)))
            except RendezvousError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            print(_line(options.workers, runs[-1]), flush=True)
    found = rows(options.workers, runs)
    for row in found:
        print(f"{row['case']:16} {row['metric']:18} median {row['median']:g} {row['unit']}")
    if options.json:
        options.json.write_text(json.dumps({"rows": found}, indent=1) + "\n")
    return 0


def _line(size: int, run: Run) -> str:
    return (
        f"{size} workers: {run.wall_s:.2f} s, {run.requests} requests, {run.not_found} not found, {run.retries} again, "
        f"{run.bytes / 1e6:.0f} MB; CPU: driver {run.driver_cpu_s:.3f} s, proxy {run.proxy_cpu_s:.3f} s (most "
        f"{run.proxy_most_cpu_s:.3f}), clients {run.client_cpu_s:.2f} s; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
