"""The control loop on a large cluster in a real ZooKeeper: how long it decides, and what it reads and writes."""

import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.control.cluster import PATHS, LargeCluster, Size, large_cluster
from edl_collective.coord.clock import SystemClock
from edl_collective.coord.leadership import Leadership
from edl_collective.coord.store import Op, Session, Store, Versioned, Wake
from edl_collective.coord.zk_store import ZkStore
from jobserver.collecting import begin_collecting
from jobserver.controller import Controller
from jobserver.reconcile import ReconcileConfig, reconcile

SETTLE_TURNS = 200


class CountingStore:
    """A Store that counts requests by kind; those of a transaction count one by one, too, as "written"."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.counts: Counter[str] = Counter()

    @property
    def session(self) -> Session:
        return self._store.session

    @property
    def session_id(self) -> int | None:
        return self._store.session_id

    def get(self, path: str, wake: Wake | None = None) -> Versioned | None:
        self.counts["reads"] += 1
        return self._store.get(path, wake)

    def children(self, path: str, wake: Wake | None = None) -> list[str]:
        self.counts["reads"] += 1
        return self._store.children(path, wake)

    def create(self, path: str, data: bytes = b"", *, ephemeral: bool = False) -> None:
        self.counts["writes"] += 1
        self._store.create(path, data, ephemeral=ephemeral)

    def append(self, prefix: str, data: bytes) -> str:
        self.counts["writes"] += 1
        return self._store.append(prefix, data)

    def set(self, path: str, data: bytes, version: int | None) -> int:
        self.counts["writes"] += 1
        return self._store.set(path, data, version)

    def delete(self, path: str, version: int | None = None) -> None:
        self.counts["writes"] += 1
        self._store.delete(path, version)

    def transact(self, ops: Sequence[Op]) -> None:
        self.counts["writes"] += 1
        self._store.transact(ops)

    def on_session(self, listener: Callable[[Session], None]) -> Callable[[], None]:
        return self._store.on_session(listener)

    def close(self) -> None:
        self._store.close()


class Loop:
    """A control loop that turns when it is told to."""

    def __init__(self, store: CountingStore, cluster: LargeCluster) -> None:
        self.store = store
        self.cluster = cluster
        self._config = ReconcileConfig(absence_timeout_s=0.1)
        leadership = Leadership(store, PATHS, "bench", "http://127.0.0.1:1")
        self._controller = Controller(store, PATHS, leadership, SystemClock(), self._config, cluster.signer)

    def decide_ms(self) -> tuple[float, float, int]:
        """Milliseconds to see what the store holds, then to decide; and how many actions come of it."""
        began_s = time.perf_counter()
        snapshot = self._controller.view.load()
        seen_s = time.perf_counter()
        decision = reconcile(snapshot, time.time(), replace(self._config, leader_epoch=1))
        return (seen_s - began_s) * 1e3, (time.perf_counter() - seen_s) * 1e3, len(decision.actions)

    def settle(self) -> int:
        """Turn and carry out until nothing changes any more; returns how many plans were written."""
        plans = 0
        for _ in range(SETTLE_TURNS):
            self._controller.step()
            new = self.cluster.carry_out()
            plans += new
            if not new:
                return plans
        raise RuntimeError(f"the cluster did not settle in {SETTLE_TURNS} turns")

    def requests(self) -> Counter[str]:
        """Since the last call."""
        counts, self.store.counts = self.store.counts, Counter()
        return counts

    def close(self) -> None:
        self._controller.stop()


@contextmanager
def settled_loop(size: Size, say: Callable[[str], None]) -> Iterator[Loop]:
    """A loop whose cluster is at rest, all slots in use; garbage is collected as a JobServer does it."""
    begin_collecting()
    with (
        tempfile.TemporaryDirectory(prefix="edl-bench-") as folder,
        large_cluster(Path(folder), size) as (cluster, hosts),
    ):
        store = CountingStore(ZkStore(hosts, session_timeout_s=60.0).start())
        loop = Loop(store, cluster)
        try:
            began_s = time.perf_counter()
            plans = loop.settle()
            say(f"{size}: {plans} plans until it was at rest, {time.perf_counter() - began_s:.1f} s")
            yield loop
        finally:
            loop.close()
            store.close()


def events(size: Size) -> Iterator[tuple[str, Callable[[LargeCluster], None], Callable[[Store], bool]]]:
    """What happens to a cluster, again and again: its name in the rows, how to do it, and whether a store shows it."""
    for turn in itertools.count():
        node, job = f"n{turn % size.nodes:04d}", f"j{size.jobs:03d}"
        yield "node-lost", partial(LargeCluster.lose, node=node), partial(_is_there, path=PATHS.node(node), there=False)
        yield "node-joins", partial(LargeCluster.join, node=node), partial(_is_there, path=PATHS.node(node), there=True)
        if turn == 0:
            submit = partial(LargeCluster.submit, job=job, number=3)
            yield "job-submitted", submit, partial(_is_there, path=PATHS.spec(job), there=True)


def _is_there(store: Store, path: str, there: bool) -> bool:
    """A session hears of a change no later than it reads it."""
    return (store.get(path) is not None) is there


def plan_bytes(cluster: LargeCluster) -> list[int]:
    """Sizes of all plans."""
    found = (cluster.store.get(path) for path in cluster.plan_paths())
    return [len(plan.data) for plan in found if plan is not None]
