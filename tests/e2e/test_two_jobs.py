"""Two jobs on one real cluster: a newcomer gets its part, a higher priority takes all, and both end well."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster

from edl_collective.audit import audit, derive_lineage, read_logs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SAMPLES = 1500


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        yield cluster.start()
    finally:
        cluster.close()


def test_a_higher_priority_takes_the_slots_of_a_job_that_goes_on_after_it(cluster: Cluster) -> None:
    cluster.add_node("a", slots=2)
    cluster.submit(
        "low", "--epochs", "4", "--step_s", "0.05",
        min_np=1, max_np=2, record_dir="low", checkpoint_url=f"file://{cluster.base}/low-ckpt",
    )  # fmt: skip
    cluster.wait_for_world("low", 2)
    cluster.wait(lambda: cluster.events("low", "epoch"), 60, "an epoch of low is completed", "low")
    cluster.submit("high", "--epochs", "1", min_np=2, max_np=2, priority=5, record_dir="high")
    cluster.wait_for_phase("low", "holding", 60)
    held = cluster.job("low")
    assert "high, which has a higher priority, took its slots" in held["reason"]
    cluster.wait(lambda: {w["exit_code"] for w in cluster.job("low")["worker_records"]} == {0}, 25, "low leaves", "low")
    kept = cluster.events("low", "checkpoint")[-2]["text"]
    assert kept.startswith("saved step "), "its state is saved where it is, in the middle of an epoch"
    cluster.wait(lambda: queue(cluster) == {"low": 1, "high": None}, 60, "high begins, low waits", "high")
    cluster.wait_for_phase("high", "succeeded", 90)
    cluster.wait_for_phase("low", "succeeded", 120)
    low = cluster.job("low")["status"]
    assert (low["failures"], low["restarts"], low["preempted_for"]) == (0, 0, None)
    ledger = cluster.job("low")["goodput"]
    assert sum(ledger.values()) == pytest.approx(low["since"] - cluster.job("low")["submitted_at"], abs=1.0)
    assert ledger["down"] > 1.0
    assert ledger["train"] > 1.0
    for name, epochs in (("low", 4), ("high", 1)):
        records = read_logs((cluster.base / name).glob("*.jsonl"))
        report = audit(records, derive_lineage(records), SAMPLES, range(epochs))
        assert report.ok, str(report)


def queue(cluster: Cluster) -> dict[str, int | None]:
    return {job["job"]: job["queue"] for job in cluster.get("/jobs")["jobs"]}
