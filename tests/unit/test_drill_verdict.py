"""What a drill makes of its measurements, and of its options; the drill itself is in tests/e2e/test_drill.py."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from jobserver.cli.main import edl
from jobserver.drill.faults import FAULTS
from jobserver.drill.leaks import SLACK, Census, Held, compare
from jobserver.drill.verdict import Book, Cost, Limits, Row, judge

LIMITS = Limits(pause_s=1.0, resize_s=5.0)
GOOD = {"pause_s": 0.5, "lost_steps": 0, "doubled_samples": 0, "missing_samples": 0, "resize_s": 4.0}


@pytest.mark.parametrize(
    ("cost", "why"),
    [
        ({}, ""),
        ({"pause_s": 1.0, "resize_s": 5.0}, ""),
        ({"resize_s": None}, ""),
        ({"pause_s": 1.25}, "paused 1.25 s, limit 1 s"),
        ({"resize_s": 5.5}, "resized after 5.50 s, limit 5 s"),
        ({"lost_steps": 1}, "1 steps done again"),
        ({"doubled_samples": 64, "missing_samples": 2}, "64 samples doubled; 2 samples missing"),
    ],
)
def test_a_fault_passes_only_within_all_limits(cost: dict[str, float], why: str) -> None:
    row = judge("kill", Cost(**{**GOOD, **cost}), LIMITS)  # type: ignore[arg-type]
    assert (row.passed, row.why) == (not why, why)


@pytest.mark.parametrize(
    ("verdicts", "passed"),
    [([], False), ([None], False), ([True, None], True), ([True, False], False), ([True, True], True)],
)
def test_what_was_not_done_is_no_failure_and_no_success(verdicts: list[bool | None], passed: bool) -> None:
    assert Book([Row("kill", LIMITS, passed=verdict) for verdict in verdicts]).passed == passed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "say --local"),
        (["--local", "--faults", "kill,flood"], "--faults names 'flood': choose among kill"),
        (["--local", "--faults", ","], "--faults is empty"),
        (["--local", "--session-timeout", "0.5"], "--session-timeout is 0.5"),
        (["--local", "--slack", "0.5"], "--slack is 0.5"),
        (["--local", "--slack", "nan"], "--slack is nan"),
        (["--local", "--keep", "/"], "--keep / exists already"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: list[str], sentence: str) -> None:
    result = CliRunner().invoke(edl, ["drill", *options])
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {sentence}")
    assert len(result.output.splitlines()) == 1


def test_help_tells_every_fault() -> None:
    text = CliRunner().invoke(edl, ["drill", "--help"]).output
    assert [name for name in FAULTS if f"    {name} " not in text] == []


def counted(fds: int = 10, memory_bytes: int = 0, processes: int = 9, plans: int = 1, events: int = 5) -> Census:
    held = {"driver": Held(fds, 6, memory_bytes), "w1": Held(16, 5, 0)}
    return Census(held, processes, {"plan": plans, "event": events})


@pytest.mark.parametrize(
    ("after", "leaks"),
    [
        (counted(), set()),
        (counted(fds=10 + SLACK), set()),
        (counted(events=200), set()),
        (counted(fds=11 + SLACK), {("driver", "fds")}),
        (counted(memory_bytes=10**9), {("driver", "memory_bytes")}),
        (counted(processes=20), {("cluster", "processes")}),
        (counted(plans=2), {("zookeeper", "plan znodes")}),
    ],
)
def test_what_grew_beyond_its_limit_is_a_leak(after: Census, leaks: set[tuple[str, str]]) -> None:
    rows = compare(counted(), after, resizes=100)
    assert {(row["of"], row["what"]) for row in rows if not row["passed"]} == leaks


def test_a_process_that_was_replaced_is_not_compared() -> None:
    after = Census({"driver": Held(99, 6, 0)}, 9, {})
    assert {row["of"] for row in compare(counted(), after, 1)} == {"cluster", "driver", "zookeeper"}


def test_the_job_writes_what_the_drill_reads(tmp_path: Path) -> None:
    from jobserver.drill.steps import StepTimes, read_steps

    first, second = StepTimes(tmp_path, "w1"), StepTimes(tmp_path, "w2")
    first.completed(1, 1)
    second.completed(1, 1)
    first.completed(2, 2)
    with (tmp_path / "w2.times").open("ab") as torn:
        torn.write(b"12.5 1")
    assert [(s.generation, s.number, s.worker) for s in read_steps(tmp_path)] == [
        (1, 1, "w1"),
        (1, 1, "w2"),
        (2, 2, "w1"),
    ]
