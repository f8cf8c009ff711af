"""A large cluster in a real ZooKeeper: nodes, jobs and workers as records, without the machines.

The records are what JobClients and drivers would write; who decides about them is a real control loop. One listener
stands for the JobClients of all nodes, because a JobServer holds a connection to each.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edl_collective.coord.key_file import load_or_create_key
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import (
    JobSpec,
    Member,
    NodeRecord,
    Plan,
    Progress,
    Record,
    Rendezvous,
    WorkerRecord,
    WorkerState,
    decode,
    encode,
)
from edl_collective.coord.signing import SpecSigner
from edl_collective.coord.store import Create, Op, Store
from edl_collective.coord.zk_store import ZkStore
from jobserver.local_zookeeper import LocalZooKeeper

PATHS = Paths("/edl")
#: operations of one transaction: ZooKeeper takes 1 MB
_BATCH = 400


@dataclass(frozen=True, slots=True)
class Size:
    """`jobs` that together want more slots than there are."""

    nodes: int = 1000
    slots: int = 8
    jobs: int = 200

    def __str__(self) -> str:
        return f"{self.nodes} nodes x {self.slots} slots, {self.jobs} jobs"


class LargeCluster:
    """Writes what the machines of the cluster would write."""

    def __init__(self, store: Store, signer: SpecSigner, size: Size, port: int) -> None:
        self.store = store
        self.signer = signer
        self.size = size
        self._port = port
        self._lives = 0
        self._incarnations: dict[str, str] = {}
        self._plans: dict[str, int] = {}
        #: plans that the last look found changed
        self._new = -1
        self._records: set[str] = set()

    def fill(self) -> None:
        """All nodes and all specs."""
        for path in (PATHS.nodes, PATHS.jobs):
            self.store.create(path)
        self._create(
            [Create(PATHS.node(f"n{i:04d}"), encode(self._node(f"n{i:04d}")), True) for i in range(self.size.nodes)]
        )
        for number in range(self.size.jobs):
            self.submit(f"j{number:03d}", number)

    def submit(self, job: str, number: int) -> None:
        least = (1, 4, 8, 16)[number % 4]
        spec = JobSpec(job=job, command=("python", "train.py"), min_np=least, max_np=least + 8 * (number % 7 + 3),
                       priority=int(number % 10 == 0), submitted_at=1000.0 + number)  # fmt: skip
        signed = self.signer.sign(PATHS.spec(job), spec)
        self._create([Create(PATHS.job(job), b""), Create(PATHS.workers(job), b""), Create(PATHS.spec(job), signed)])

    def join(self, node: str) -> None:
        self.store.create(PATHS.node(node), encode(self._node(node)), ephemeral=True)

    def lose(self, node: str) -> None:
        self.store.delete(PATHS.node(node))

    def plan_paths(self) -> list[str]:
        return [PATHS.plan(f"j{number:03d}") for number in range(self.size.jobs)]

    def node_of(self, job: str) -> str:
        """One on which the job has a worker."""
        found = self.store.get(PATHS.plan(job))
        if found is None:
            raise RuntimeError(f"{job} has no plan")
        return decode(found.data, Plan).workers[-1].node

    def at_rest(self) -> bool:
        """Whether every job has a plan, and all of them are carried out."""
        return len(self._plans) >= self.size.jobs and not self._new

    def carry_out(self) -> int:
        """Do what the newest plans say, at once: workers run, and form the world. Returns how many plans were new."""
        new = 0
        for number in range(self.size.jobs + 1):
            job = f"j{number:03d}"
            found = self.store.get(PATHS.plan(job))
            if found is None or self._plans.get(job) == found.version:
                continue
            new += 1
            self._plans[job] = found.version
            self._follow(job, decode(found.data, Plan))
        self._new = new
        return new

    def _follow(self, job: str, plan: Plan) -> None:
        planned = {w.worker: w for w in plan.workers}
        ours = {path for path in self._records if path.startswith(PATHS.workers(job) + "/")}
        wanted = {PATHS.worker(job, name) for name in planned}
        for gone in ours - wanted:  # ended, and forgotten at once
            self.store.delete(gone)
        records = [
            WorkerRecord(worker=w.worker, node=w.node, slot=w.slot, incarnation=self._incarnations[w.node],
                         state=WorkerState.RUNNING, pid=1, generation=plan.revision, placed=True)
            for w in planned.values() if PATHS.worker(job, w.worker) not in ours
        ]  # fmt: skip
        self._create([Create(PATHS.worker(job, record.worker), encode(record)) for record in records])
        self._records = (self._records - ours) | wanted
        members = tuple(Member(w.worker, w.node, rank, 0, 1, rank, 1) for rank, w in enumerate(plan.workers))
        self._put(PATHS.rendezvous(job), Rendezvous(generation=plan.revision, epoch=1, members=members))
        rate = 100.0 * len(members)
        self._put(PATHS.progress(job), Progress(generation=plan.revision, world_size=len(members), epoch=1, step=1,
                                                samples_per_s=rate, pause_s=0.3, samples_left=10**9))  # fmt: skip

    def _node(self, node: str) -> NodeRecord:
        self._lives += 1
        self._incarnations[node] = f"i{self._lives}"
        return NodeRecord(node=node, incarnation=f"i{self._lives}", address="127.0.0.1", port=self._port,
                          slots=self.size.slots, session_timeout_s=10.0)  # fmt: skip

    def _put(self, path: str, record: Record) -> None:
        found = self.store.get(path)
        self.store.set(path, encode(record), None if found is None else found.version)

    def _create(self, ops: Sequence[Op]) -> None:
        for start in range(0, len(ops), _BATCH):
            self.store.transact(ops[start : start + _BATCH])


@contextmanager
def listener() -> Iterator[int]:
    """The port of somebody who answers in the place of all JobClients, and says nothing."""
    loop = asyncio.new_event_loop()

    server = loop.run_until_complete(loop.create_server(asyncio.Protocol, "127.0.0.1", 0, backlog=2048))
    thread = threading.Thread(target=loop.run_forever, name="bench-nodes")
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


@contextmanager
def large_cluster(folder: Path, size: Size) -> Iterator[tuple[LargeCluster, str]]:
    """A filled cluster, whose key is in `folder`, and where its ZooKeeper is."""
    with LocalZooKeeper(folder / "zookeeper", heap_mb=768) as zookeeper, listener() as port:
        store = ZkStore(zookeeper.hosts, session_timeout_s=60.0).start()
        try:
            cluster = LargeCluster(store, SpecSigner(load_or_create_key(folder / "key")), size, port)
            cluster.fill()
            yield cluster, zookeeper.hosts
        finally:
            store.close()
