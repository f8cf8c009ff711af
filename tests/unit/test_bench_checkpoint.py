"""The bench of checkpoints: its systems save and load what they say, on a small state, and its rows hold together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench.checkpoint.command import LOCAL, measurements
from bench.checkpoint.local import figures, loads, saves
from bench.checkpoint.systems import SYSTEMS, Weights, make
from bench.command import measured

SIZE_BYTES = 1 << 16


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name not in ("dcp-async", "raw")])
def test_a_system_loads_what_it_saved(name: str, tmp_path: Path) -> None:
    model = Weights(SIZE_BYTES)
    assert model.size_bytes == SIZE_BYTES
    system = make(name, model, tmp_path)
    before = [value.clone() for value in model.parameters()]
    with torch.no_grad():
        system.save()
        for value in model.parameters():
            value.zero_()
        system.load()
    system.close()
    assert all(torch.equal(value, saved) for value, saved in zip(model.parameters(), before, strict=True))


def test_every_turn_is_compared_with_its_own_reference(tmp_path: Path) -> None:
    model = Weights(SIZE_BYTES)
    rows = saves(model, tmp_path, 2, ("edl", "raw")) + loads(model, tmp_path, 2, ("edl", "raw"))
    assert {row["case"] for row in rows} == {"blocked", "durable-local", "load"}
    assert all(len(row["runs"]) == 2 for row in rows)
    (ratio,) = (r for r in rows if (r["case"], r["system"], r["metric"]) == ("load", "raw", "ratio"))
    assert ratio["runs"] == [1.0, 1.0]
    assert list(tmp_path.iterdir()) == []


def test_figures_are_seconds_ratio_and_speed() -> None:
    found = {row["metric"]: row["median"] for row in figures("load", "edl", [2.0, 4.0], [1.0, 4.0], 4_000_000)}
    assert found == {"seconds": 3.0, "ratio": 1.5, "mb_s": 1.5}


def test_every_case_is_measured_once(tmp_path: Path) -> None:
    cases = [name for item in measurements(SIZE_BYTES, tmp_path) for name in item.bounds]
    assert len(set(cases)) == len(cases) == 7
    assert set(LOCAL) == set(SYSTEMS)


def test_only_the_wanted_cases_of_a_measurement_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (together, *_) = measurements(SIZE_BYTES, tmp_path)
    assert list(together.bounds) == ["blocked", "durable-local"]
    rows = measured([together], ["durable-local"], 1)
    assert {row["case"] for row in rows} == {"durable-local"}
    assert {row["system"] for row in rows} == set(LOCAL)
    assert "must be <= 1.1" in capsys.readouterr().out
