"""The command `bench.sh distill`: what it refuses, and how a table says whether a figure was reached."""

import pytest
from bench.__main__ import main
from bench.command import Bound, line
from bench.distill.command import measurements

ROWS = [
    {"case": "c", "system": "edl", "metric": "ratio", "unit": "1", "median": 0.98, "runs": [0.97, 0.98, 0.99]},
    {"case": "c", "system": "plain", "metric": "ratio", "unit": "1", "median": 0.5, "runs": [0.5]},
]


@pytest.mark.parametrize(
    ("bound", "at_least", "verdict"),
    [(0.97, True, "pass"), (0.99, True, "MISS"), (1.0, False, "pass"), (0.9, False, "MISS")],
)
def test_the_row_with_a_bound_says_whether_it_is_kept(bound: float, at_least: bool, verdict: str) -> None:
    ours, theirs = (line(row, Bound("ratio", bound, at_least)) for row in ROWS)
    assert ours.endswith(verdict)
    assert "runs 0.97 0.98 0.99" in ours
    assert "must" not in theirs, "a peer has no bound"


def test_an_unknown_case_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--cases", "handover", "nonsense"])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "'nonsense'" in message
    assert all(name in message for item in measurements() for name in item.bounds)


def test_runs_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["distill", "--runs", "0"])
    assert "--runs is 0" in capsys.readouterr().err


def test_a_peer_that_could_not_be_measured_is_a_row_with_the_reason() -> None:
    failed = {**ROWS[1], "metric": "failed", "reason": "it is not installed"}
    assert line(failed, Bound("ratio", 1.0)).endswith("it is not installed")
