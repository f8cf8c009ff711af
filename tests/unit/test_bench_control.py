"""The simulated day: nothing is given twice, and the rules differ as they are told to."""

import pytest
from bench.control import day, rules

from jobserver.shares import Claim

NODES, SLOTS = 100, 8
JOBS = day.submissions(60, NODES * SLOTS, seed=3)
RULES = {"edl": (rules.edl, None), "predecessor": (rules.predecessor, 30.0), "first-come": (rules.first_come, None)}


@pytest.mark.parametrize("name", RULES)
def test_no_rule_gives_more_than_there_is(name: str) -> None:
    rule, every_s = RULES[name]

    def checked(claims: list[Claim], capacity: int) -> dict[str, int]:
        counts = dict(rule(claims, capacity))
        assert sum(counts.values()) <= capacity
        assert all(counts[claim.job] <= claim.want for claim in claims)
        return counts

    outcome = day.simulate(checked, JOBS, NODES, SLOTS, 3, every_s)  # type: ignore[arg-type]
    assert 0 < outcome.trained <= outcome.used <= 1


def test_a_job_that_has_the_cluster_for_itself_trains_as_fast_as_its_law_says() -> None:
    job = day.Submission("j", 0.0, 4, 4, work=4000.0, loss=0.0)
    outcome = day.simulate(rules.edl, [job], 1, 8, seed=0)
    assert outcome.finished == 1
    assert outcome.mean_completion_s == pytest.approx(day.START_S + day.PAUSE_S + 1000.0, abs=1.0)


def test_first_come_waits_for_its_turn_and_the_predecessor_gives_one_at_a_time() -> None:
    claims = [Claim("a", 2, 6, held=4, started=True), Claim("big", 6, 6), Claim("small", 1, 1)]
    assert rules.first_come(claims, 8) == {"a": 4, "big": 0, "small": 0}
    assert rules.predecessor([Claim("a", 2, 6, held=2, started=True)], 100) == {"a": 3}
    assert rules.predecessor([Claim("a", 2, 6, held=4, started=True)], 4) == {"a": 3}
