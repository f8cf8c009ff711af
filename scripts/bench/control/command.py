"""scripts/bench.sh control: what decisions cost at the size of a large cluster, and how well they use it."""

import argparse
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from bench.command import Command, Measurement, Report, measured, say, single
from bench.control import day, loop, rules, servers
from bench.control.cluster import LargeCluster, Size, large_cluster
from bench.rows import Row, row
from edl_collective.coord.store import Store, Versioned

DESCRIPTION = """\
Measures the JobServer at the size of a large cluster (default: 1000 nodes x 8 slots, 200 jobs), whose nodes, jobs and
workers are records in a real ZooKeeper:
  decision        from a change (a node is lost or joins, a job is submitted) to the decided actions: reading what has
                  changed (see_ms) and deciding (decide_ms); requests to ZooKeeper until all of it is carried out
  plan            bytes of a plan
  leader-change   two JobServers: SIGKILL to the leader while a node is lost, until the other has written a plan
  memory          of the leading JobServer
  api             99th percentile of 200 requests a second to a JobServer on one core, while jobs are resized
  day             simulated, always at full size: a day of submissions and lost nodes under our rule, the
                  predecessor's autoscaler, and first come, first served
"""


def measurements(size: Size) -> list[Measurement]:
    """In the order in which they run."""
    return [
        single("decision", partial(decision, size), "decide_ms", 50.0),
        single("leader-change", partial(leader_change, size), "seconds", None),
        single("memory", partial(memory, size), "resident_mb", 200.0),
        single("api", partial(api, size), "p99_ms", None),
        single("day", partial(simulated_day, Size()), "used", None),
    ]


def run(options: argparse.Namespace, report: Report) -> list[Row]:
    size = Size(100, 8, 20) if options.quick else Size()
    report["size"] = str(size)
    say(f"size: {size}")
    return measured(measurements(size), options.cases, options.runs)


def decision(size: Size, runs: int) -> list[Row]:
    seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with loop.settled_loop(size, say) as ours:
        ours.requests()
        for what, happen, shows in islice(loop.events(size), 1 + 2 * runs):
            happen(ours.cluster)
            servers.wait(partial(shows, ours.store), f"{what} is seen")
            see_ms, decide_ms, _ = ours.decide_ms()
            plans = ours.settle()
            requests = ours.requests()
            found = {"see_ms": see_ms, "decide_ms": decide_ms, "plans": plans, **requests}
            for metric, value in found.items():
                seen[what][metric].append(value)
        everything = [value for by_metric in seen.values() for value in by_metric["decide_ms"]]
        rows = [row("decision", "edl", "decide_ms", "ms", everything)]
        units = {"see_ms": "ms", "decide_ms": "ms"}
        for what, by_metric in seen.items():
            rows += [row(what, "edl", metric, units.get(metric, ""), values) for metric, values in by_metric.items()]
        return [*rows, row("plan", "edl", "bytes", "B", loop.plan_bytes(ours.cluster))]


def memory(size: Size, runs: int) -> list[Row]:
    """After nodes were lost and came back for a while, each time."""
    values = []
    with _served(size, 1) as (found, cluster):
        for number in range(runs):
            with _coming_and_going(cluster, number):
                servers.latencies_ms(found[0], seconds=2.0)
            values.append(found[0].resident_mb)
    return [row("memory", "edl", "resident_mb", "MB", values)]


def api(size: Size, runs: int) -> list[Row]:
    """Nodes are lost and come back meanwhile, so that jobs are resized all the time."""
    with _served(size, 1) as (found, cluster):
        found[0].pin(min(os.sched_getaffinity(0)))
        values = []
        for number in range(runs):
            with _coming_and_going(cluster, number):
                values.append(servers.p99(servers.latencies_ms(found[0])))
        return [row("api", "edl", "p99_ms", "ms", values)]


def leader_change(size: Size, runs: int) -> list[Row]:
    values = []
    for number in range(runs):
        with _served(size, 2) as (found, cluster):
            servers.wait(partial(found[1].watches, found[0]), "the second JobServer watches the first")
            lost = cluster.node_of("j001")
            told = partial(
                _any_differs, cluster.store, {path: cluster.store.get(path) for path in cluster.plan_paths()}
            )
            began_s = time.monotonic()
            found[0].kill()
            cluster.lose(lost)
            servers.wait(told, "the other JobServer decides")
            values.append(time.monotonic() - began_s)
            say(f"    run {number + 1}: {values[-1]:.2f} s")
    return [row("leader-change", "edl", "seconds", "s", values)]


def _any_differs(store: Store, before: Mapping[str, Versioned | None]) -> bool:
    return any(store.get(path) != old for path, old in before.items())


@contextmanager
def _served(size: Size, count: int) -> Iterator[tuple[list[servers.Server], LargeCluster]]:
    """JobServers on a cluster whose jobs have all their workers."""
    with (
        tempfile.TemporaryDirectory(prefix="edl-bench-") as folder,
        large_cluster(Path(folder), size) as (cluster, zookeeper),
        servers.machines(cluster),
        servers.servers(Path(folder), zookeeper, count) as found,
    ):
        servers.wait(cluster.at_rest, "all jobs have their workers")
        yield found, cluster


@contextmanager
def _coming_and_going(cluster: LargeCluster, number: int) -> Iterator[None]:
    """A node is lost every two seconds, and joins a second later."""

    def run(stopping: threading.Event) -> None:
        while not stopping.wait(1.0):
            cluster.lose(f"n{number:04d}")
            stopping.wait(1.0)
            cluster.join(f"n{number:04d}")

    with servers.meanwhile("bench-nodes-come-and-go", run):
        yield


def simulated_day(size: Size, runs: int) -> list[Row]:
    """Each run is another day; on it the rules have the same jobs and lose the same nodes."""
    found: dict[str, list[day.Outcome]] = defaultdict(list)
    slots = size.nodes * size.slots
    for seed in range(runs):
        jobs = day.submissions(200, slots, seed)
        for name, rule, every_s in (
            ("edl", rules.edl, None),
            ("predecessor", rules.predecessor, 30.0),
            ("first-come", rules.first_come, None),
        ):
            found[name].append(day.simulate(rule, jobs, size.nodes, size.slots, seed, every_s))
    rows = []
    for name, outcomes in found.items():
        rows += [
            row("day", name, "used", "", [o.used for o in outcomes]),
            row("day", name, "wait_s", "s", [o.mean_wait_s for o in outcomes]),
            row("day", name, "longest_wait_s", "s", [o.longest_wait_s for o in outcomes]),
            row("day", name, "completion_s", "s", [o.mean_completion_s for o in outcomes]),
            row("day", name, "resizes", "", [o.resizes for o in outcomes]),
        ]
    return rows


COMMAND = Command(
    name="control",
    help="decisions, JobServers and a simulated day at the size of a large cluster",
    description=DESCRIPTION,
    quick="a minute: a tenth of the nodes and jobs, 3 runs",
    run=run,
)
