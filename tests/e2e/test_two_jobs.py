"""Two jobs on one real cluster: a newcomer gets its part, a higher priority takes all, and both end well."""

import pytest
from cluster import Cluster

from edl_collective.audit import audit, derive_lineage, read_logs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SAMPLES = 1500
#: of 2.5 s each, until it may hurry
EPOCHS = 12


def test_a_higher_priority_takes_the_slots_of_a_job_that_goes_on_after_it(cluster: Cluster) -> None:
    cluster.add_node("a", slots=2)
    cluster.submit(
        "low", "--epochs", str(EPOCHS), "--step_s", "0.1",
        min_np=1, max_np=2, record_dir="low", checkpoint_url=f"file://{cluster.base}/low-ckpt",
    )  # fmt: skip
    cluster.wait_for_world("low", 2)
    cluster.wait(lambda: cluster.events("low", "epoch"), 60, "an epoch of low is completed", "low")
    cluster.submit("high", "--epochs", "1", min_np=2, max_np=2, priority=5, record_dir="high")
    cluster.wait_for_phase("low", "holding", 60)
    held = cluster.job("low")
    assert "high, which has a higher priority, took its slots" in held["reason"]
    cluster.wait(lambda: {w["exit_code"] for w in cluster.job("low")["worker_records"]} == {0}, 60, "low leaves", "low")
    cluster.wait(lambda: saved_in_an_epoch(cluster), 60, "its state is saved where it is", "low")
    cluster.wait(lambda: queue(cluster) == {"low": 1, "high": None}, 60, "high begins, low waits", "high")
    cluster.wait_for_phase("high", "succeeded", 90)
    (cluster.base / "low" / "hurry").touch()
    cluster.wait_for_phase("low", "succeeded", 120)
    low = cluster.job("low")["status"]
    assert (low["failures"], low["restarts"], low["preempted_for"]) == (0, 0, None)
    lived_s = low["since"] - cluster.job("low")["submitted_at"]
    cluster.wait(lambda: abs(sum(cluster.job("low")["goodput"].values()) - lived_s) < 1.0, 60, "all is told", "low")
    ledger = cluster.job("low")["goodput"]
    assert ledger["down"] > 1.0
    assert ledger["train"] > 1.0
    for name, epochs in (("low", EPOCHS), ("high", 1)):
        records = read_logs((cluster.base / name).glob("*.jsonl"))
        report = audit(records, derive_lineage(records), SAMPLES, range(epochs))
        assert report.ok, str(report)


def saved_in_an_epoch(cluster: Cluster) -> bool:
    """Whether its state was saved in the middle of one."""
    return any(event["text"].startswith("saved step ") for event in cluster.events("low", "checkpoint"))


def queue(cluster: Cluster) -> dict[str, int | None]:
    return {job["job"]: job["queue"] for job in cluster.get("/jobs")["jobs"]}
