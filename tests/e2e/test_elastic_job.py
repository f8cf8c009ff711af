"""One elastic job, end to end, with real processes and SIGKILL: the walking skeleton."""

import os
import signal

import pytest
from cluster import Cluster

from edl_collective.audit import audit, derive_lineage, read_logs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SAMPLES = 1500


def assert_exactly_once(cluster: Cluster, epochs: int) -> None:
    """Every sample exactly once per epoch, by what the datasets gave and the optimizers completed."""
    records = read_logs((cluster.base / "records").glob("*.jsonl"))
    report = audit(records, derive_lineage(records), SAMPLES, range(epochs))
    assert report.ok, str(report)


def test_grow_lose_one_shrink_lose_all_resume(cluster: Cluster) -> None:
    for node in ("a", "b"):
        cluster.add_node(node)
    epochs = 12  # of 4 s each, until it may hurry
    cluster.submit(
        "tiny", "--epochs", str(epochs), "--step_s", "0.15",
        min_np=1, max_np=2, np=1, checkpoint_url=f"file://{cluster.base}/ckpt",
    )  # fmt: skip
    cluster.wait_for_world("tiny", 1)
    cluster.post("/jobs/tiny/scale", {"np": 2})
    cluster.wait_for_world("tiny", 2)

    victim = cluster.running("tiny")[-1]
    os.kill(victim["pid"], signal.SIGKILL)
    cluster.wait(
        lambda: victim["worker"] not in {w["worker"] for w in cluster.running("tiny")}
        and len(cluster.running("tiny")) == 2,
        60, "the killed worker is replaced", "tiny",
    )  # fmt: skip

    cluster.post("/jobs/tiny/scale", {"np": 1})
    cluster.wait_for_world("tiny", 1)
    cluster.wait(lambda: cluster.events("tiny", "epoch"), 60, "an epoch is completed", "tiny")

    completed = max(event["fields"]["epoch"] for event in cluster.events("tiny", "epoch"))
    for worker in cluster.running("tiny"):
        os.kill(worker["pid"], signal.SIGKILL)
    cluster.wait(lambda: cluster.events("tiny", "resume"), 60, "the job resumes from its checkpoint", "tiny")
    assert cluster.events("tiny", "resume")[0]["fields"]["epoch"] >= completed + 1
    (cluster.base / "records" / "hurry").touch()
    cluster.wait_for_phase("tiny", "succeeded", 120)
    # What a JobClient tells of its jobs is written after the records of how its workers ended.
    cluster.wait(lambda: len(cluster.events("tiny", "epoch")) >= epochs, 60, "the last epoch is told", "tiny")
    done = [event["fields"]["epoch"] for event in cluster.events("tiny", "epoch")]
    assert done == list(range(epochs))
    assert cluster.events("tiny", "epoch")[-1]["fields"]["accuracy"] > 0.8
    sizes = [(e["fields"]["from"], e["fields"]["to"]) for e in cluster.events("tiny", "resize")]
    assert (1, 2) in sizes
    assert (2, 1) in sizes
    assert_exactly_once(cluster, epochs)
