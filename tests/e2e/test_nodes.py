"""The size of a job follows its schedule and its nodes, between min_np and max_np, without a lost step."""

import signal
import time

import pytest
from cluster import Cluster
from faults import GLOO_ENV, REFORMED_S, Victim

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SAMPLES = 1000
SLOW = ("--epochs", "10000", "--step_s", "0.06", "--samples", str(SAMPLES))


def test_nodes_come_and_go(cluster: Cluster) -> None:
    """np is left open: as many workers as there are slots, never above max_np; below min_np the job holds its state."""
    cluster.add_node("a", slots=2)
    checkpoint_url = f"file://{cluster.base}/ckpt"
    cluster.submit("tiny", *SLOW, min_np=2, max_np=3, checkpoint_url=checkpoint_url)
    cluster.wait_for_world("tiny", 2)
    victim = Victim(cluster, "tiny", SAMPLES)
    cluster.add_node("b", slots=1)
    cluster.wait_for_world("tiny", 3)

    # With this node the driver and rank 0 go, in order; one worker is left, holds its state and waits.
    assert victim.node_of_driver() == "a"
    cluster.kill("a", signal.SIGTERM)
    cluster.wait_for_phase("tiny", "holding")
    left = [w for w in cluster.job("tiny")["worker_records"] if w["node"] == "a"]
    assert [(w["state"], w["outcome"], w["exit_code"]) for w in left] == [("exited", "left", 0)] * 2
    steps = victim.steps()

    cluster.add_node("a", slots=4)
    cluster.wait_for_world("tiny", 3)
    assert steps == victim.steps()[: len(steps)]

    # The same with SIGKILL: the survivor waits at the gate with the state in memory, and training goes on from there.
    (survivor,) = [w["worker"] for w in cluster.running("tiny") if w["node"] == "b"]
    cluster.kill("a", signal.SIGKILL)
    cluster.wait_for_phase("tiny", "holding")
    steps = victim.steps()
    cluster.add_node("a", slots=4)
    cluster.wait_for_world("tiny", 3)
    assert survivor in {w["worker"] for w in cluster.running("tiny")}
    assert steps == victim.steps()[: len(steps)]
    assert victim.steps()[len(steps)].number == steps[-1].number + 1
    status = cluster.job("tiny")["status"]
    assert (status["failures"], status["attempt"], cluster.events("tiny", "resume")) == (0, 1, [])
    sizes = [(r["from"], r["to"]) for r in victim.resizes()]
    assert max(to for _, to in sizes) == 3
    victim.assert_nothing_lost(to_the_end=True)


def test_schedule_and_graceful_leave(cluster: Cluster) -> None:
    """1 -> 2 workers by completed epochs; then the node of rank 0 leaves and training goes on at the other."""
    for node in ("a", "b"):
        cluster.add_node(node)
    schedule = {"epochs": [{"epoch": 0, "np": 1}, {"epoch": 2, "np": 2}]}
    cluster.submit("tiny", *SLOW, min_np=1, max_np=2, schedule=schedule, env=GLOO_ENV)
    cluster.wait_for_world("tiny", 2)
    victim = Victim(cluster, "tiny", SAMPLES)
    assert [(r["from"], r["to"]) for r in victim.resizes()] == [(0, 1), (1, 2)]
    since_s, event = time.monotonic(), victim.last_event()
    cluster.kill("a", signal.SIGTERM)
    cluster.wait_for_world("tiny", 1)
    (resize,) = victim.resizes(after=event)
    assert (resize["from"], resize["to"]) == (2, 1)
    # The driver moves away too: if the old one has let w1 go before the new one leads, that one finds it gone.
    assert "leaves a, which drains" in resize["cause"] or resize["cause"] == "worker w1 is gone"
    assert victim.longest_gap_s(since_s) < REFORMED_S, "no collective failed"
    victim.assert_nothing_lost(to_the_end=True)
