"""A worker dies while all members of its generation are inside Horovod's init(), where nobody can be interrupted.

All of them die with it, so no process holds the training any more; it goes on from the state that the nodes hold in
memory, without a step lost and without a checkpoint.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import ROOT, Cluster
from faults import Victim

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

JOB = "window"
SAMPLES = 1500
MEMORY = Path("/dev/shm")
#: new processes, two cores, other tests' load
RESTART_S = 60.0


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    cluster = Cluster(tmp_path_factory.mktemp("init-window"))
    try:
        cluster.start()
        for node in ("a", "b"):
            cluster.add_node(node, slots=2)
        cluster.submit(
            JOB, "--epochs", "10000", "--step_s", "0.02", "--samples", str(SAMPLES),
            program=ROOT / "tests" / "jobs" / "dies_in_init.py",
            min_np=1, max_np=4, np=3, max_failures=100, checkpoint_url=f"file://{cluster.base}/checkpoints",
        )  # fmt: skip
        cluster.wait_for_world(JOB, 3)
        yield Victim(cluster, JOB, SAMPLES)
    finally:
        cluster.close()
    ours = list(MEMORY.glob("edl-*/*/window-*"))
    assert not ours, "left in memory"


def test_all_members_die_in_init(victim: Victim) -> None:
    cluster = victim.cluster
    (cluster.base / "records" / "die-in-init").write_text("1")
    event = victim.last_event()
    before = {w["worker"] for w in cluster.running(JOB)}
    names = victim.kill_ranks(1)
    died_s = time.monotonic()
    cluster.wait(lambda: victim.resizes(after=event), RESTART_S, "it trains again", JOB)
    cluster.wait_for_world(JOB, 3)
    print("gap", victim.longest_gap_s(died_s), [e["text"] for e in cluster.get("/jobs/window/events")["events"]][-25:])
    assert not before & {w["worker"] for w in cluster.running(JOB)}, "all of them died"
    assert names
    (told,) = [e["text"] for e in cluster.events(JOB, "resume") if e["number"] > event]
    assert "from the state that a node held in memory" in told
    assert victim.lost_steps() == set()
    report = victim.audit()
    assert report.ok, str(report)
