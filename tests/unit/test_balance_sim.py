"""The simulated fleet of the bench: useful work is counted right, and the balance reaches its target."""

import pytest
from bench.distill.balance_sim import answered, balance_sim


def test_a_shared_teacher_is_spread_over_those_who_lack() -> None:
    rates = {"a": 100.0, "b": 100.0, "c": 100.0}
    edges = {"x": ["a", "c"], "y": ["b", "c"]}
    assert answered(rates, {"x": 150.0, "y": 150.0}, edges) == pytest.approx(300)
    assert answered(rates, {"x": 180.0, "y": 100.0}, edges) == pytest.approx(280, rel=0.02)
    assert answered(rates, {"x": 500.0, "y": 0.0}, edges) == pytest.approx(200)
    assert answered(rates, {"x": 500.0}, {"x": ["gone"]}) == 0


def test_the_balance_keeps_nearly_all_useful_time_and_beats_counting() -> None:
    ours, counting = balance_sim(runs=3, length_s=600)
    assert (ours["case"], ours["system"], ours["metric"], ours["unit"]) == ("balance-sim", "edl", "ratio", "1")
    assert len(ours["runs"]) == 3
    assert 0.97 <= ours["median"] <= 1
    assert counting["median"] < ours["median"] - 0.03
