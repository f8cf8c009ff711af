"""bench.rows and bench.cases: what is run, in which order, and how it is told."""

import json

import pytest
from bench.cases import CASES, GROUPS, QUICK_CASES, RENDEZVOUS, SESSIONS, SYSTEMS, Act, all_names, interleaved, selected
from bench.rows import Rows, table

JOIN = selected(["join-1-2"])


def test_every_case_that_the_documentation_names_exists() -> None:
    named = "join-1-2 join-3-4 leave-4-3 kill-2-1 kill-4-3 kill-8-7 resize-8 join-500mb coordinator-kill driver-kill"
    assert {*named.split(), "node-lost", "rendezvous-64", "rendezvous-256"} <= set(all_names())


def test_a_group_stands_for_its_members() -> None:
    assert [case.name for case in selected(["resize-8"])] == list(GROUPS["resize-8"])


def test_an_unknown_case_is_named() -> None:
    with pytest.raises(ValueError, match="no case 'jion'"):
        selected(["jion"])


def test_cases_are_consistent() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert not {case.name for case in CASES} & {*GROUPS, *RENDEZVOUS}
    for case in CASES:
        assert max(case.before, *case.after) <= SESSIONS[case.session].max_np
        assert (case.to is None) == (case.act in (Act.KILL, Act.NODE))


def test_runs_are_interleaved_and_the_first_system_changes() -> None:
    trials = list(interleaved(selected(QUICK_CASES), ["edl", "horovod"], 2))
    assert [(trial.run, trial.system) for trial in trials] == [(0, "edl"), (0, "horovod"), (1, "horovod"), (1, "edl")]
    assert all([case.name for case in trial.cases] == list(QUICK_CASES) for trial in trials)


def test_every_case_runs_once_per_system_and_run() -> None:
    done = [(t.run, t.system, case.name) for t in interleaved(CASES, SYSTEMS, 2) for case in t.cases]
    assert len(done) == len(set(done)) == 2 * len(SYSTEMS) * len(CASES)


def test_rows_have_medians_and_runs() -> None:
    rows = Rows()
    for pause_s in (0.3, 0.1, 0.2):
        rows.add("join-1-2", "edl", pause_s=pause_s)
    assert rows.as_json() == [
        {
            "case": "join-1-2", "system": "edl", "metric": "pause_s", "unit": "s",
            "median": 0.2, "runs": [0.3, 0.1, 0.2],
        }
    ]  # fmt: skip
    json.dumps(rows.as_json())


def test_a_failure_is_a_row_with_its_reasons() -> None:
    rows = Rows()
    rows.fail("kill-2-1", "torchft", "it hung")
    rows.fail("kill-2-1", "torchft", "it hung")
    (row,) = rows.as_json()
    assert (row["metric"], row["median"], row["runs"], row["reason"]) == ("failed", 2, [1, 1], "it hung")


def test_the_table_compares_with_ours_and_with_the_target() -> None:
    rows = Rows()
    rows.add("join-1-2", "edl", pause_s=0.1)
    rows.add("join-1-2", "horovod", pause_s=2.0)
    rows.fail("join-1-2", "torchft", "it hung")
    _, line, reason = table(rows, JOIN, ["edl", "horovod", "torchft"])
    assert line.split() == ["join-1-2", "pause_s", "0.1", "2", "(20.0x)", "failed", "<=", "0.15", "pass"]
    assert "it hung" in reason


def test_a_target_is_missed_by_too_much_and_by_failing() -> None:
    slow, failed = Rows(), Rows()
    slow.add("join-1-2", "edl", pause_s=0.2)
    failed.add("join-1-2", "edl", pause_s=0.1)
    failed.fail("join-1-2", "edl", "it hung")
    assert table(slow, JOIN, ["edl"])[1].split()[-1] == "MISS"
    assert table(failed, JOIN, ["edl"])[1].split()[-1] == "MISS"


def test_without_ours_there_are_no_targets() -> None:
    rows = Rows()
    rows.add("join-1-2", "horovod", pause_s=2.0)
    assert table(rows, JOIN, ["horovod"])[1].split() == ["join-1-2", "pause_s", "2"]
