"""The rows of a drill, by its own measurements of a job that only writes what workers would write."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from edl_collective.audit import StepLog
from jobserver.cli import drill as command
from jobserver.cli.main import edl
from jobserver.drill import drill
from jobserver.drill.cluster import Cluster, ClusterError, Json, Unavailable
from jobserver.drill.faults import FAULTS, Fault, Scene
from jobserver.drill.steps import StepTimes
from jobserver.drill.verdict import Book, Cost, Limits, Row, judge
from jobserver.drill.victim import Victim

#: samples of a step and of an epoch
BATCH, SAMPLES = 2, 4
WIDE = Limits(pause_s=1000.0, resize_s=1000.0)


class Training(Cluster):
    """One worker that trains while somebody waits for it; a test changes the rest."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.generation, self.step = 1, 0
        self.driver: Json | None = {"pid": 2**30, "epoch": 1}
        (base / "records").mkdir()
        self._log, self._times = StepLog(base / "records" / "w1.jsonl"), StepTimes(base / "records", "w1")

    def train(self, steps: int) -> None:
        for _ in range(steps):
            epoch, place = divmod(self.step, SAMPLES // BATCH)
            indices = range(place * BATCH, (place + 1) * BATCH)
            where = {"generation": self.generation, "epoch": epoch, "step": self.step}
            self._log.take(**where, rank=0, world_size=1, indices=indices)
            self._log.confirm()
            self.step += 1
            self._times.completed(self.generation, self.step)

    def job(self, job: str) -> Json:
        progress = {"epoch": self.step // (SAMPLES // BATCH)}
        return {"driver": self.driver, "rendezvous": {"generation": self.generation}, "progress": progress}

    def wait(self, condition: Callable[[], object], timeout_s: float, what: str, job: str | None = None) -> None:
        for _ in range(20):
            try:
                if condition():
                    return
            except Unavailable:
                pass
            self.train(1)
        raise ClusterError(f"not true: {what}\nwhat the processes said")


class Trained(Victim):
    def __init__(self, cluster: Training) -> None:
        super().__init__(cluster, "drill", SAMPLES)
        self._training = cluster

    def wait_for_steps(self, count: int, timeout_s: float = 30.0) -> None:
        self._training.train(count)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


def row_of(training: Training, fault: Fault) -> Row:
    scene = Scene(training, Trained(training), 2, 1, ("a", "b"), random.Random(1))
    return drill.do(scene, fault, WIDE)


def fault(do: Callable[[Scene], float | None]) -> Fault:
    return Fault("made-up", "what a test does", do, lambda _: WIDE)


def test_a_fault_that_costs_nothing_passes(training: Training) -> None:
    row = row_of(training, fault(lambda _: None))
    assert (row.passed, row.why) == (True, "")
    assert row.cost is not None
    assert (row.cost.lost_steps, row.cost.missing_samples, row.cost.unasked_worlds) == (0, 0, 0)


def test_steps_that_nobody_did_are_a_failed_row(training: Training) -> None:
    def skip(_: Scene) -> None:
        training.generation, training.step = 2, training.step + 3

    row = row_of(training, fault(skip))
    assert (row.passed, row.cost) == (False, None)
    assert row.why.startswith("the lineage needs each step once: ")
    assert row.why in (training.base / "made-up.failed").read_text()


def test_a_job_without_a_driver_is_a_failed_row(training: Training) -> None:
    training.driver = None
    row = row_of(training, FAULTS["driver"])
    assert (row.passed, row.cost, row.why) == (False, None, "not true: there is a driver to kill")


def test_a_driver_that_ends_just_now_is_a_failed_row(training: Training) -> None:
    assert row_of(training, FAULTS["driver"]).why == "[Errno 3] No such process"


@pytest.mark.parametrize(("formed", "why"), [(2, ""), (3, "1 worlds formed that nobody asked for")])
def test_a_world_that_nobody_asked_for_is_a_failure(training: Training, formed: int, why: str) -> None:
    def resize(scene: Scene) -> float:
        for _ in range(formed):
            training.generation += 1
            scene.victim.wait_for_steps(1)
        return scene.victim.first_step_after(training.generation - 1)

    row = row_of(training, fault(resize))
    assert (row.passed, row.why) == (not why, why)
    assert row.plain()["unasked_worlds"] == formed - 2


def test_no_step_of_a_later_world_is_said_so(training: Training) -> None:
    training.train(1)
    with pytest.raises(ClusterError, match="no world after generation 7 has completed a step"):
        Trained(training).first_step_after(7)


# ---- slack ----------------------------------------------------------------------------------------------------------


def test_slack_multiplies_every_limit() -> None:
    limits = Limits(pause_s=1.0, resize_s=5.0).times(3.0)
    assert limits == Limits(pause_s=3.0, resize_s=15.0)
    assert Limits(pause_s=1.0).times(3.0) == Limits(pause_s=3.0)
    slow = Cost(pause_s=2.9, lost_steps=0, doubled_samples=0, missing_samples=0, resize_s=14.0)
    assert judge("driver", slow, limits).passed
    assert not judge("driver", slow, Limits(1.0, 5.0)).passed


@pytest.mark.parametrize("slack", [1.0, 3.0])
def test_slack_is_told(slack: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(plan: drill.Plan, _say: object) -> Book:
        cost = Cost(pause_s=0.1, lost_steps=0, doubled_samples=0, missing_samples=0)
        return Book([judge(f.name, cost, plan.limits(f)) for f in plan.faults])

    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(command, "check_training", lambda: None)
    file = tmp_path / "rows.json"
    options = ["--local", "--faults", "kill", "--json", str(file), *(["--slack", "3"] if slack != 1.0 else [])]
    result = CliRunner().invoke(edl, ["drill", *options])
    assert result.exit_code == 0, result.output
    assert ("all limits are 3 times the usual ones (--slack)" in result.output) == (slack != 1.0)
    told = json.loads(file.read_text())
    assert (told["slack"], told["rows"][0]["pause_limit_s"]) == (slack, 3.0 * slack)
