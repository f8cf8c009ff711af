"""bench.resize on systems that misbehave: each failure becomes a row, and the next case runs on a new system."""

import time

import pytest
from bench import resize
from bench.cases import SESSIONS, Trial, selected
from bench.errors import NotApplicable, SystemFailed
from bench.rows import Rows
from bench.steps import format_step
from bench.systems.base import System


class Scripted(System):
    """Writes the log of a world of any size itself; what it is told to fail at, it fails at."""

    name = "edl"
    program = "none.py"
    config = "scripted"
    made: list["Scripted"]
    fails: dict[str, Exception]

    def start(self, size: int) -> None:
        self.made.append(self)
        self.closed = False
        self._number = 0
        self._world(size)

    def resize(self, size: int) -> None:
        self._do("resize")
        self._world(size)

    def kill_worker(self) -> None:
        self._do("kill_worker")
        self._world(len(self.present_world()) - 1)

    def kill_coordinator(self) -> None:
        self._do("kill_coordinator")

    def kill_driver(self) -> None:
        self._do("kill_driver")

    def lose_node(self) -> None:
        self._do("lose_node")

    def wait_for_steps(self, count: int, limit_s: float) -> None:
        return None  # the log holds all that there will be

    def close(self) -> None:
        super().close()
        self.closed = True

    def _do(self, what: str) -> None:
        if what in self.fails:
            raise self.fails[what]

    def _world(self, size: int) -> None:
        self.log_dir.mkdir(exist_ok=True)
        self._number += 1
        entered_s = time.monotonic()
        for rank in range(size):
            with (self.log_dir / f"{rank + 1}.steps").open("ab") as log:
                log.write(format_step(time.monotonic(), entered_s, self._number, rank, size))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    Scripted.made, Scripted.fails = [], {}
    monkeypatch.setattr(resize, "system_class", lambda _name: Scripted)
    monkeypatch.setattr(resize, "WATCH_S", 0.01)
    return Scripted


def run(*cases: str) -> Rows:
    rows = Rows()
    chosen = tuple(selected(cases))
    resize.run_trial(Trial(0, "edl", SESSIONS[chosen[0].session], chosen), rows, lambda _text: None)
    return rows


def test_cases_of_a_session_share_a_system(scripted: type[Scripted]) -> None:
    rows = run("join-1-2", "join-3-4", "leave-4-3", "kill-4-3")
    assert len(scripted.made) == 1
    assert scripted.made[0].closed
    assert not rows.reasons
    for case in ("join-1-2", "join-3-4", "leave-4-3", "kill-4-3"):
        assert rows.median(case, "edl", "steps_lost") == 0


def test_a_failure_is_a_row_and_the_rest_gets_a_new_system(scripted: type[Scripted]) -> None:
    scripted.fails["kill_worker"] = SystemFailed("it hung")
    rows = run("join-1-2", "kill-4-3", "kill-2-1")
    assert rows.median("join-1-2", "edl", "pause_s") is not None
    assert rows.reasons == {("kill-4-3", "edl", "failed"): ["it hung"], ("kill-2-1", "edl", "failed"): ["it hung"]}
    assert len(scripted.made) == 2
    assert all(system.closed for system in scripted.made)


def test_what_cannot_be_done_to_a_system_is_no_failure(scripted: type[Scripted]) -> None:
    scripted.fails["kill_driver"] = NotApplicable("it has none")
    rows = run("driver-kill")
    (row,) = rows.as_json()
    assert (row["metric"], row["reason"]) == ("not_applicable", "it has none")
    assert not rows.failed("driver-kill", "edl")


def test_a_mistake_of_the_bench_is_not_taken_for_a_failure_of_the_system(scripted: type[Scripted]) -> None:
    scripted.fails["resize"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        run("join-1-2")
    assert scripted.made[0].closed
