"""scripts/bench.sh resize with one case: a cluster comes up, a worker is killed, the figures are told and written."""

import json
from pathlib import Path

import pytest
from bench.__main__ import main


@pytest.mark.e2e
def test_one_case_is_measured_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "report.json"
    arguments = ["resize", "--systems", "edl", "--cases", "kill-2-1", "--runs", "1", "--json", str(to)]
    assert main(arguments) == 0
    report = json.loads(to.read_text())
    # A process that outlives its cluster is an error of the cluster, which would be a row "failed".
    assert {(row["case"], row["system"]) for row in report["rows"]} == {("kill-2-1", "edl")}
    assert [row["reason"] for row in report["rows"] if "reason" in row] == []
    medians = {row["metric"]: row["median"] for row in report["rows"]}
    assert set(medians) == {"pause_s", "steps_lost", "total_s"}
    assert medians["steps_lost"] == 0
    assert 0 < medians["pause_s"] < 30
    assert set(report["versions"]) >= {"horovod", "torch", "torchft-nightly"}
    assert "kill-2-1" in capsys.readouterr().out
