"""The audit in real runs: it reads what the datasets gave, so a fault in the sampler does not get past it."""

from typing import Any

import pytest
from cluster import ROOT, Cluster

from edl_collective.audit import AuditReport, audit, derive_lineage, read_logs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PLANTED = ROOT / "tests" / "jobs" / "off_by_one.py"


def audited(cluster: Cluster, samples: int, epochs: int) -> AuditReport:
    records = read_logs((cluster.base / "records").glob("*.jsonl"))
    return audit(records, derive_lineage(records), samples, range(epochs))


def test_uneven_tails_and_a_planted_off_by_one(cluster: Cluster) -> None:
    """67 samples in batches of 64 leave 3 for four workers; then the same with a sampler that is wrong by one."""
    cluster.add_node("a", slots=4)
    right, wrong = 67, 1500
    cluster.submit("right", "--epochs", "2", "--samples", str(right), "--min_local_batch", "1", min_np=4, max_np=4)
    cluster.wait_for_phase("right", "succeeded", 90)
    assert audited(cluster, right, 2).ok, str(audited(cluster, right, 2))
    sizes = [len(taken.indices) for taken in read_logs((cluster.base / "records").glob("*.jsonl")).taken]
    assert sorted(sizes) == sorted(2 * ([16] * 4 + [1, 1, 1, 0]))

    planted: dict[str, Any] = {"program": PLANTED, "record_dir": "planted", "min_np": 2, "max_np": 2}
    cluster.submit("wrong", "--epochs", "1", "--samples", str(wrong), **planted)
    cluster.wait_for_phase("wrong", "succeeded", 90)
    records = read_logs((cluster.base / "planted").glob("*.jsonl"))
    report = audit(records, derive_lineage(records), wrong, range(1))
    assert not report.ok
    assert len(report.epochs[0].missing) == len(report.epochs[0].doubled) == 1
