"""From world to world: what ends a call of the training function, and what happens between two calls."""

import time
from collections.abc import Callable

import pytest
from horovod.common.exceptions import HorovodInternalError

from edl_collective import horovod as drop_in
from edl_collective import local
from edl_collective.context import read_context
from edl_collective.errors import FruitlessWorlds, NotInitialised, NotInWorld, RunTwice, WorldChanged
from edl_collective.held import Held
from edl_collective.messages import Assigned, Happened, Report
from edl_collective.phases import Phases
from edl_collective.run_loop import MAX_FRUITLESS_WORLDS, carry, run
from edl_collective.worlds import Left, Worlds


class Scripted:
    """Worlds and a state at once, so that the order of all calls is one list; a call may be told to raise."""

    cause = "test"
    driver_epoch = 0
    held: Held | None = None
    place: Assigned | None = None
    phases = Phases(time.monotonic)

    def __init__(self, **failures: list[BaseException | None]) -> None:
        self.calls: list[str] = []
        self._failures = failures
        self.generation: int | None = None
        self.level = False
        self.global_step = 0

    def _call(self, name: str) -> None:
        self.calls.append(name)
        left = self._failures.get(name, [])
        error = left.pop(0) if left else None
        if error is not None:
            raise error

    def enter(self, worlds: Worlds | None = None) -> None:
        self._call("enter" if worlds is None else "equal")

    def exit(self) -> None:
        self._call("exit")

    def give_up(self) -> None:
        self._call("give up")

    def prepare(self) -> None:
        self._call("prepare")

    def keep(self) -> None:
        self._call("keep")

    def leave_world(self) -> None:
        self._call("forget")

    def finish(self) -> None:
        self._call("finish")

    def interrupted(self) -> bool:
        return self.level

    def report(self, report: Report) -> None:
        raise AssertionError("nobody reports here")

    def happened(self, event: Happened) -> None:
        raise AssertionError("nothing happens here")

    # what a Horovod elastic state does
    def sync(self) -> None:
        self._call("sync")

    def restore(self) -> None:
        self._call("restore")

    def on_reset(self) -> None:
        self._call("reset")
        self.notices.clear()

    def on_hosts_updated(self, timestamp: float, _result: object) -> None:
        self.notices.append(timestamp)

    notices: list[float]


def training(script: Scripted, *ends: BaseException | str) -> Callable[[Scripted], str]:
    """A training function that ends each of its calls as told."""
    left = list(ends)

    def train(state: Scripted) -> str:
        assert state is script
        script.calls.append("train")
        end = left.pop(0)
        if isinstance(end, BaseException):
            raise end
        return end

    return train


WORLD = ["enter", "equal", "train"]
FIRST = ["prepare", *WORLD]
BETWEEN = ["exit", "forget"]
LAST = ["finish", "exit"]


@pytest.mark.parametrize("end", [WorldChanged(), HorovodInternalError("gloo\nmore"), HorovodInternalError()])
def test_the_function_is_called_again_in_the_next_world(end: Exception) -> None:
    script = Scripted()
    assert carry(training(script, end, "done"), script, script) == "done"
    given_up = ["give up"] if isinstance(end, HorovodInternalError) else []
    assert script.calls == [*FIRST, *given_up, *BETWEEN, *WORLD, *LAST]


@pytest.mark.parametrize(("call", "reached"), [("enter", ["enter"]), ("equal", ["enter", "equal"])])
def test_a_world_that_breaks_while_it_forms_is_formed_again(call: str, reached: list[str]) -> None:
    script = Scripted(**{call: [HorovodInternalError("gone")]})
    assert carry(training(script, "done"), script, script) == "done"
    assert script.calls == ["prepare", *reached, "give up", *BETWEEN, *WORLD, *LAST]


def test_a_worker_that_is_told_to_leave_exits_without_a_failure() -> None:
    script = Scripted(enter=[None, Left(last=False)])
    with pytest.raises(SystemExit) as left:
        carry(training(script, WorldChanged()), script, script)
    assert left.value.code == 0
    assert script.calls == [*FIRST, *BETWEEN, "enter", "exit"]


def test_the_last_to_leave_keep_the_state() -> None:
    script = Scripted(enter=[None, Left(last=True)])
    with pytest.raises(SystemExit):
        carry(training(script, WorldChanged()), script, script)
    assert script.calls == [*FIRST, *BETWEEN, "enter", "keep", "exit"]


def test_an_error_of_the_script_ends_the_loop_and_is_not_a_finish() -> None:
    script = Scripted()
    with pytest.raises(ZeroDivisionError):
        carry(training(script, ZeroDivisionError()), script, script)
    assert script.calls == [*FIRST, "exit"]
    with pytest.raises(NotInWorld):
        local.rank()


def test_run_wants_init_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local._Local, "context", None)

    @run
    def train(state: Scripted, factor: int) -> int:
        return factor

    assert train.__name__ == "train"
    with pytest.raises(NotInitialised):
        train(Scripted(), 2)


# ---- the drop-in for Horovod elastic scripts -----------------------------------------------------------------------


def dropped_in(script: Scripted, *ends: BaseException | str) -> object:
    from horovod.common.exceptions import HostsUpdatedInterrupt

    script.notices = []
    told = [HostsUpdatedInterrupt(skip_sync=True) if end == "hosts updated" else end for end in ends]
    return drop_in.carry(training(script, *told), script, drop_in.Notices(), script)


def test_a_horovod_state_is_synced_in_every_world_even_after_a_pure_shrink() -> None:
    script = Scripted()
    assert dropped_in(script, "hosts updated", "done") == "done"
    assert script.calls == ["sync", "train", "exit", "enter", "reset", "sync", "train", "finish"]


def test_a_horovod_state_goes_back_to_its_commit_after_a_failure() -> None:
    script = Scripted(enter=[HorovodInternalError("gone")])
    assert dropped_in(script, HorovodInternalError("gloo"), "done") == "done"
    assert script.calls == [
        "sync", "train", "give up", "restore", "exit", "enter",
        "give up", "restore", "exit", "enter", "reset", "sync", "train", "finish",
    ]  # fmt: skip


def test_a_level_that_still_holds_survives_the_emptied_queue() -> None:
    script = Scripted()
    script.generation, script.level = 4, True
    assert dropped_in(script, "hosts updated", "done") == "done"
    assert script.notices == [4]


def test_a_notice_is_newer_than_that_of_any_earlier_world_whoever_was_rank_0() -> None:
    script, notices = Scripted(), drop_in.Notices()
    script.notices = []
    notices.tell()  # nobody to tell yet
    notices.follow(script, script)
    notices.tell()
    for generation in (3, 5):
        script.generation, script.level = generation, True
        notices.tell()
    assert script.notices == [3, 5]


def test_a_job_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    elastic = {"HOROVOD_ELASTIC": "1", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "h"}
    monkeypatch.setattr(local._Local, "ran", False)
    monkeypatch.setattr(local._Local, "context", read_context(elastic))
    local.begin_run()
    with pytest.raises(RunTwice, match="a second time"):
        local.begin_run()
    monkeypatch.setattr(local._Local, "context", read_context({}))
    local.begin_run()


def test_worlds_that_fail_without_a_step_between_come_to_an_end() -> None:
    script = Scripted()

    def train(_state: Scripted) -> None:
        raise HorovodInternalError("ranks differ\nand more")

    with pytest.raises(FruitlessWorlds, match=r"20 worlds in a row .* \(ranks differ\)"):
        carry(train, script, script)
    assert script.calls.count("give up") == MAX_FRUITLESS_WORLDS


def test_a_completed_step_begins_the_count_again() -> None:
    script = Scripted()

    def train(state: Scripted) -> str:
        state.global_step += 1
        if state.global_step <= 2 * MAX_FRUITLESS_WORLDS:
            raise HorovodInternalError("a member died")
        return "done"

    assert carry(train, script, script) == "done"
