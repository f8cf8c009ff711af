"""scripts/soak.sh resizes: many resizes in a row, and what each process holds before and after.

Starts a private cluster in a temporary directory and leaves nothing behind. Tests use `resizes` with a small count.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from edl_collective.coord.zk_store import ZkStore
from jobserver.drill.cluster import Cluster, ClusterError, Json
from jobserver.drill.drill import SAMPLES, START_TIMEOUT_S
from jobserver.drill.leaks import Census, census, compare
from jobserver.drill.victim import Victim

JOB = "soak"
#: resizes after which caches, pools and bounded histories are what they are to stay
WARM_UP = 4
#: workers that live through all of it, and those that come and go
SMALL, LARGE = 2, 3


def resizes(count: int, base: Path, say: Callable[[str], None]) -> Json:
    """`count` resizes after the warm-up; rows of what grew, and what happened to the samples. Raises ClusterError."""
    cluster = Cluster(base)
    try:
        cluster.start()
        for node in ("a", "b"):
            cluster.start_node(node, slots=2)
        for node in ("a", "b"):
            cluster.wait_for_node(node)
        command = [sys.executable, "-m", "jobserver.drill.job", "--samples", str(SAMPLES), "--step_s", "0.05"]
        command += ["--record_dir", str(base / "records")]
        cluster.create(JOB, command, min_np=1, max_np=LARGE, np=SMALL, max_failures=10)
        cluster.wait_for_world(JOB, SMALL, START_TIMEOUT_S)
        store = ZkStore(cluster.environ["EDL_ZOOKEEPER"]).start()
        try:
            before = _resize(cluster, store, WARM_UP, say)
            began_s = time.monotonic()
            after = _resize(cluster, store, count, say)
        finally:
            store.close()
        wall_s = time.monotonic() - began_s
        victim = Victim(cluster, JOB, SAMPLES)
        lost, report = len(victim.lost_steps()), victim.audit()
        rows = compare(before, after, count)
        cluster.close()
    finally:
        cluster.abandon()
    return {
        "passed": report.ok and not lost and all(row["passed"] for row in rows),
        "resizes": count,
        "wall_s": round(wall_s, 1),
        "lost_steps": lost,
        "audit": "each sample exactly once" if report.ok else str(report),
        "znodes": dict(after.znodes),
        "rows": rows,
    }


def _resize(cluster: Cluster, store: ZkStore, count: int, say: Callable[[str], None]) -> Census:
    """An even number of resizes, so that the world has its size of before."""
    for number in range(1, count + count % 2 + 1):
        size = LARGE if number % 2 else SMALL
        cluster.post(f"/jobs/{JOB}/scale", {"np": size})
        cluster.wait_for_world(JOB, size, START_TIMEOUT_S)
        if number % 10 == 0:
            say(f"{number} resizes")
    cluster.wait(lambda: _alone(cluster), 30, "those that left are gone", JOB)
    return census(cluster, JOB, store)


def _alone(cluster: Cluster) -> bool:
    return all(w["state"] in ("running", "exited") for w in cluster.job(JOB)["worker_records"])


_DESCRIPTION = """\
resizes: a job of two workers gets a third and loses it again, COUNT resizes in all. Then no process that lived through
it (workers, driver, JobClients, JobServer) may hold more descriptors or threads or much more memory than before, there
may be no more processes, and no more znodes but for the bounded history; and no step or sample may be lost.
The exit code is 0 if so, else 1. A hundred resizes take about four minutes on two quiet cores."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/soak.sh", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["resizes"])
    parser.add_argument("--count", type=int, default=100, help="how often (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is printed there, with more detail")
    options = parser.parse_args()
    if options.count < 1:
        parser.error(f"--count is {options.count}: it must be at least 1")
    began_s, load = time.monotonic(), os.getloadavg()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began_s:6.1f} s] {text}", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="edl-soak-") as folder:
        try:
            result = resizes(options.count, Path(folder), say)
        except ClusterError as error:
            print(f"soak: {error}", file=sys.stderr)
            return 1
    result["load"] = [*load, *os.getloadavg()]
    for row in result["rows"]:
        verdict = "pass" if row["passed"] else "FAIL"
        grown = f"{row['before']:>12} -> {row['after']:<12} may grow by {row['may_grow']:<10}"
        print(f"{row['of']:10} {row['what']:20} {grown} {verdict}")
    print(f"{result['resizes']} resizes in {result['wall_s']} s, {result['lost_steps']} steps lost, {result['audit']}")
    print("passed" if result["passed"] else "FAILED")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
