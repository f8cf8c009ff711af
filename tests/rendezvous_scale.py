"""Measure one rendezvous of many simulated workers: PYTHONPATH=. python tests/rendezvous_scale.py WORKERS

Each node's proxy and the driver are processes of their own; the clients share this one, and dominate the wall time.
Prints the wall time from the last gate to the last worker running, the number of requests, and the CPU seconds of the
driver and of each proxy. Needs a ZooKeeper (--zookeeper), or starts a private one.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import msgspec
from rendezvous_sim import Meetings, SimJob, SimWorker

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import DriverRecord, NodeRecord, encode
from edl_collective.coord.zk_store import ZkStore
from edl_collective.messages import AgentMessage, decode_agent_line
from jobclient.rendezvous_http import RendezvousServer
from jobclient.rendezvous_proxy import JobProxy
from jobserver.local_zookeeper import LocalZooKeeper

ROOT = Path(__file__).parents[1]
KEY = ClusterKey(b"a key for measurements, 32 bytes")
JOB = "scale"


async def serve_node(name: str) -> None:
    """A node's proxy, told what to do by JSON lines on stdin: ["worker_gate", worker, generation] and so on."""

    def send(worker: str, message: AgentMessage) -> None:
        print(json.dumps([worker, msgspec.json.encode(message).decode()]), flush=True)

    server = RendezvousServer()
    await server.start()
    proxy = JobProxy(JOB, name, "1", KEY, send, server, lambda record: None)
    await proxy.start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        what, *arguments = json.loads(line)
        if what == "driver_changed":
            arguments = [msgspec.json.decode(arguments[0], type=DriverRecord)]
        getattr(proxy, what)(*arguments)
    await proxy.close()
    await server.close()


class RemoteProxy:
    """The JobProxy of a node process, as SimWorker uses it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def call(self, what: str, *arguments: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, *arguments]).encode() + b"\n")

    def worker_gate(self, worker: str, last_generation: int) -> None:
        self.call("worker_gate", worker, last_generation)

    def worker_running(self, worker: str, generation: int) -> None:
        self.call("worker_running", worker, generation)


class RemoteNode:
    def __init__(self, name: str, meetings: Meetings) -> None:
        self.name, self.meetings = name, meetings
        self.workers: dict[str, SimWorker] = {}

    async def start(self) -> "RemoteNode":
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, __file__, "0", "--serve", self.name]
        self.process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        self.proxy = RemoteProxy(self.process)
        self.reading = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            worker, message = json.loads(line)
            self.workers[worker].deliver(decode_agent_line(message.encode()))

    def cpu_s(self) -> float:
        return cpu_s(self.process.pid)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(hosts: str, size: int, per_node: int) -> None:
    paths = Paths(f"/scale-{uuid.uuid4().hex[:8]}")
    store = ZkStore(hosts).start()
    sim = SimJob(store, paths, JOB)
    meetings = Meetings()
    nodes = [await RemoteNode(f"n{i}", meetings).start() for i in range(-(-size // per_node))]
    for node in nodes:
        record = NodeRecord(node=node.name, incarnation="1", address="127.0.0.1", port=1, slots=per_node)
        store.create(paths.node(node.name), encode(record), ephemeral=True)
    with tempfile.NamedTemporaryFile() as key_file:
        key_file.write(KEY.secret)
        key_file.flush()
        command = [sys.executable, "-m", "edl_collective.driver", "--zookeeper", hosts, "--root", paths.root]
        command += ["--job", JOB, "--node", "n0", "--key-file", key_file.name]
        driver = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL, cwd=ROOT)
        while (found := store.get(paths.driver(JOB))) is None:  # noqa: ASYNC110 - the store knows no event loop
            await asyncio.sleep(0.01)
    for node in nodes:
        node.proxy.call("driver_changed", found.data.decode())
    sim.plan({f"w{i + 1}": nodes[i // per_node].name for i in range(size)}, "start")
    await asyncio.sleep(0.5)
    before = [cpu_s(driver.pid), *(node.cpu_s() for node in nodes)]
    started_s = time.monotonic()
    own_s = time.process_time()
    workers = []
    for i in range(size):
        node = nodes[i // per_node]
        worker = SimWorker(f"w{i + 1}", node)  # type: ignore[arg-type]
        node.workers[worker.name] = worker
        workers.append(worker)
    while any(worker.state != "running" for worker in workers):
        for worker in workers:
            if worker.task.done():
                worker.task.result()
        await asyncio.sleep(0.005)
    wall_s = time.monotonic() - started_s
    used = [cpu_s(driver.pid), *(node.cpu_s() for node in nodes)]
    spent = [after - start for after, start in zip(used, before, strict=True)]
    print(
        f"{size} workers on {len(nodes)} nodes: {wall_s:.2f} s, {sum(w.requests for w in workers)} requests; CPU: "
        f"clients {time.process_time() - own_s:.2f} s, driver {spent[0]:.2f} s, "
        f"proxy {sum(spent[1:]) / len(nodes):.2f} s (most {max(spent[1:]):.2f} s)",
        flush=True,
    )
    for worker in workers:
        worker.task.cancel()
    driver.terminate()
    await driver.wait()
    for node in nodes:
        node.process.kill()
        await node.process.wait()
        await node.reading
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("workers", type=int)
    parser.add_argument("--per-node", type=int, default=8)
    parser.add_argument("--zookeeper", help="hosts; a private server is started without it")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve_node(options.serve))
        return
    if options.zookeeper:
        asyncio.run(measure(options.zookeeper, options.workers, options.per_node))
        return
    with tempfile.TemporaryDirectory() as data, LocalZooKeeper(Path(data)) as server:
        asyncio.run(measure(server.hosts, options.workers, options.per_node))


if __name__ == "__main__":
    main()
