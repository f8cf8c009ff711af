"""What the processes of a cluster hold, before and after many resizes: descriptors, threads, memory; and znodes.

Compared are processes that live through all of it, in worlds of the same size. ZooKeeper itself is not looked at.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from edl_collective.coord.paths import Paths
from edl_collective.coord.store import Store
from jobserver.drill.cluster import Cluster, Json

#: what may differ between two moments of the same process: a connection, a thread of a pool
SLACK = 3
#: what an allocator may keep; a leak of a few KB in each resize shows only in many
MEMORY_SLACK_BYTES = 24 * 2**20
MEMORY_PER_RESIZE_BYTES = 64 * 2**10
#: history that is bounded elsewhere (jobserver.reconcile), and grows until then
HISTORY = ("event", "worker")


@dataclass(frozen=True, slots=True)
class Held:
    """Of one process."""

    fds: int
    threads: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Census:
    """Everything that may leak, at one moment. `held`: by role; `znodes`: by kind of path."""

    held: Mapping[str, Held]
    processes: int
    znodes: Mapping[str, int]


def census(cluster: Cluster, job: str, store: Store) -> Census:
    """Count what there is now: workers that run, the driver, and the processes that the cluster has started."""
    detail = cluster.job(job)
    pids = {name: process.pid for name, process in cluster.processes.items()}
    pids["driver"] = detail["driver"]["pid"]
    pids |= {w["worker"]: w["pid"] for w in detail["worker_records"] if w["state"] == "running"}
    return Census(
        {role: _held(pid) for role, pid in pids.items()}, len(cluster.ours()), dict(_znodes(store, Paths("/edl")))
    )


def compare(before: Census, after: Census, resizes: int) -> list[Json]:
    """A row for each thing counted, with its limit; only what was there at both moments is compared."""
    rows = [_row("cluster", "processes", before.processes, after.processes, SLACK)]
    for role in before.held.keys() & after.held.keys():
        old, new = before.held[role], after.held[role]
        rows.append(_row(role, "fds", old.fds, new.fds, SLACK))
        rows.append(_row(role, "threads", old.threads, new.threads, SLACK))
        memory = MEMORY_SLACK_BYTES + MEMORY_PER_RESIZE_BYTES * resizes
        rows.append(_row(role, "memory_bytes", old.memory_bytes, new.memory_bytes, memory))
    for kind in before.znodes.keys() | after.znodes.keys():
        if kind not in HISTORY:
            rows.append(_row("zookeeper", f"{kind} znodes", before.znodes.get(kind, 0), after.znodes.get(kind, 0), 0))
    return sorted(rows, key=lambda row: (row["of"], row["what"]))


def _row(of: str, what: str, before: int, after: int, may_grow: int) -> Json:
    grown = after - before
    names = {"of": of, "what": what, "before": before, "after": after}
    return {**names, "grown": grown, "may_grow": may_grow, "passed": grown <= may_grow}


def _held(pid: int) -> Held:
    process = psutil.Process(pid)
    return Held(len(list(Path(f"/proc/{pid}/fd").iterdir())), process.num_threads(), process.memory_full_info().uss)


def _znodes(store: Store, paths: Paths) -> Counter[str]:
    found: Counter[str] = Counter()
    waiting = [paths.root]
    while waiting:
        path = waiting.pop()
        key = paths.parse(path)
        found[key.kind if key is not None else "other"] += 1
        waiting += [f"{path}/{child}" for child in store.children(path)]
    return found
