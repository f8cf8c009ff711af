"""The state that a node holds in memory: what is kept and read back, and that none is ever taken that is too old."""

import errno
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from any_state import any_state, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from edl_collective.held import Held, Progress


def worker(folder: Path, generation: int, share: float = 0.5) -> Held:
    """A worker of this node that has a place in `generation`."""
    held = Held(folder, share)
    held.carry(generation)
    return held


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- one node --------------------------------------------------------------------------------------------------------


def test_a_state_is_read_back_whatever_its_tensors(tmp_path: Path) -> None:
    worker(tmp_path, 3).hold(Progress(7, 1), lambda: any_state(1))
    successor = worker(tmp_path, 4)
    assert successor.newest() == Progress(7, 1)
    assert_same(successor.take(), any_state(1))


@pytest.mark.parametrize("offered", [Progress(6, 1), Progress(7, 2), Progress(7, 1)])
def test_one_that_is_no_further_does_not_replace_it(tmp_path: Path, offered: Progress) -> None:
    worker(tmp_path, 3).hold(Progress(7, 1), lambda: {"of": "first"})
    worker(tmp_path, 3).hold(offered, lambda: pytest.fail("made for nothing"))
    assert worker(tmp_path, 4).take() == {"of": "first"}


@pytest.mark.parametrize("offered", [Progress(8, 1), Progress(8, 2), Progress(7, 0)])
def test_one_that_is_further_replaces_it(tmp_path: Path, offered: Progress) -> None:
    worker(tmp_path, 3).hold(Progress(7, 1), lambda: {"of": "first"})
    worker(tmp_path, 3).hold(offered, lambda: {"of": "second"})
    successor = worker(tmp_path, 4)
    assert (successor.newest(), successor.take()) == (offered, {"of": "second"})
    assert names(tmp_path) == [f"held-4-{offered.step}-{offered.epoch}", "scratch"]


def reserve(folder: Path, share: float = 0.5) -> list[str]:
    thread = worker(folder, 3, share).reserve({"x": torch.zeros(1000), "n": 1})
    if thread is not None:
        thread.join()
    return names(folder)


def test_the_memory_is_there_before_a_state_is_held(tmp_path: Path) -> None:
    assert reserve(tmp_path) == ["scratch"]
    scratch = (tmp_path / "scratch").stat()
    assert (scratch.st_size, scratch.st_blocks * 512 >= 4000) == (4000, True)
    worker(tmp_path, 3).hold(Progress(7, 1), lambda: {"x": torch.ones(10)})
    held = tmp_path / "held-3-7-1"
    assert held.stat().st_ino == scratch.st_ino, "written over"
    assert torch.equal(worker(tmp_path, 4).take()["x"], torch.ones(10))


def test_nothing_is_reserved_beside_a_held_state_nor_twice_nor_where_none_is_held(tmp_path: Path) -> None:
    worker(tmp_path / "a", 3).hold(Progress(7, 1), lambda: {"x": 1})
    assert reserve(tmp_path / "a") == ["held-3-7-1"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "scratch").write_bytes(b"other worker's")
    assert reserve(tmp_path / "b") == ["scratch"]
    assert (tmp_path / "b" / "scratch").read_bytes() == b"other worker's"
    (tmp_path / "c").mkdir()
    assert reserve(tmp_path / "c", share=0.0) == []


def test_a_state_that_has_no_room_is_not_reserved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert reserve(tmp_path, share=1e-12) == []
    assert "EDL_HELD_SHARE" in caplog.text


def test_it_lasts_over_generations_that_die_in_init_and_no_longer(tmp_path: Path) -> None:
    worker(tmp_path, 3).hold(Progress(7, 0), lambda: {"x": 1})
    assert worker(tmp_path, 4).newest() == Progress(7, 0)
    assert worker(tmp_path, 5).newest() == Progress(7, 0)
    worker(tmp_path, 5).drop()
    assert worker(tmp_path, 6).newest() is None


def test_a_node_that_was_not_in_the_generation_before_has_none(tmp_path: Path) -> None:
    worker(tmp_path, 3).hold(Progress(7, 0), lambda: {"x": 1})
    assert worker(tmp_path, 5).newest() is None
    assert names(tmp_path) == ["scratch"]


def test_what_a_dead_worker_had_half_written_is_not_held(tmp_path: Path) -> None:
    first = worker(tmp_path, 3)
    first.hold(Progress(7, 0), lambda: {"x": torch.ones(1000)})
    first.drop()
    (tmp_path / "scratch").write_bytes((tmp_path / "scratch").read_bytes()[:100])
    assert worker(tmp_path, 4).newest() is None
    again = worker(tmp_path, 4)
    again.hold(Progress(9, 0), lambda: {"x": torch.zeros(10)})
    assert torch.equal(worker(tmp_path, 5).take()["x"], torch.zeros(10))


def test_memory_is_written_over_in_place(tmp_path: Path) -> None:
    held = worker(tmp_path, 3)
    held.hold(Progress(7, 0), lambda: {"x": torch.ones(1000)})
    (before,) = (path.stat().st_ino for path in tmp_path.iterdir())
    held.carry(4)
    held.drop()
    held.hold(Progress(8, 0), lambda: {"x": torch.ones(10)})
    (path,) = tmp_path.iterdir()
    assert (path.name, path.stat().st_ino) == ("held-4-8-0", before)
    assert path.stat().st_size < 1000


def test_a_state_that_is_too_large_is_not_held_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = worker(tmp_path, 3, share=1e-15)
    with caplog.at_level(logging.WARNING):
        for step in (7, 8):
            held.hold(Progress(step, 0), lambda: {"x": torch.ones(1000)})
    assert worker(tmp_path, 4).newest() is None
    (record,) = caplog.records
    assert "EDL_HELD_SHARE" in record.getMessage()


def test_a_share_of_nothing_holds_nothing(tmp_path: Path) -> None:
    worker(tmp_path, 3, share=0.0).hold(Progress(7, 0), lambda: pytest.fail("made for nothing"))
    assert worker(tmp_path, 4).newest() is None


def test_a_state_that_cannot_be_stored_is_not_held(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    worker(tmp_path, 3).hold(Progress(7, 0), lambda: {"x": object()})
    assert "the state is not held in memory" in caplog.text
    assert worker(tmp_path, 4).newest() is None


def test_a_folder_that_somebody_emptied_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    worker(folder, 3).hold(Progress(7, 0), lambda: {"x": 1})
    assert worker(folder, 4).take() == {"x": 1}


# ---- when the system refuses -----------------------------------------------------------------------------------------


def no_descriptors(*_: Any, **__: Any) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    "use",
    [
        lambda held: held.carry(4),
        lambda held: held.newest(),
        lambda held: held.drop(),
        lambda held: held.hold(Progress(8, 0), lambda: {"x": 1}),
    ],
    ids=["carry", "newest", "drop", "hold"],
)
def test_an_error_of_the_system_is_said_once_and_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, use: Callable[[Held], object]
) -> None:
    held = worker(tmp_path, 3)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(os, "open", no_descriptors)
        assert use(held) is None
        assert use(held) is None
    (record,) = caplog.records
    assert "Too many open files" in record.getMessage()


def test_a_folder_that_cannot_be_made_again_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    held = worker(tmp_path / "file" / "held", 3)
    held.hold(Progress(7, 0), lambda: {"x": 1})
    held.drop()
    assert held.newest() is None


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    others = ["held-", "held-1-2", "held-1-2-3-4", "held-x", "held-1-2-x"]
    for name in others:
        (tmp_path / name).touch()
    held = worker(tmp_path, 1)
    assert held.newest() is None
    held.drop()
    assert names(tmp_path) == sorted(others)


def test_what_could_not_be_thrown_away_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(tmp_path, 3).hold(Progress(7, 0), lambda: {"x": 1})
    held = worker(tmp_path, 4)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", no_descriptors)
        held.drop()  # and then the world completes steps
    assert worker(tmp_path, 5).newest() is None
    assert names(tmp_path) == ["scratch"]
    held = worker(tmp_path, 5)
    held.hold(Progress(9, 0), lambda: {"x": 2})
    assert worker(tmp_path, 6).take() == {"x": 2}, "the folder is of use again"


def test_one_that_could_not_be_carried_is_not_taken_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(tmp_path, 3).hold(Progress(7, 0), lambda: {"x": 1})
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", no_descriptors)
        held = worker(tmp_path, 4)
    assert held.newest() is None
    assert worker(tmp_path, 5).newest() is None


def test_a_state_that_there_is_no_memory_to_copy_is_not_held(tmp_path: Path) -> None:
    def no_memory() -> Any:
        raise RuntimeError("not enough memory")

    worker(tmp_path, 3).hold(Progress(7, 0), no_memory)
    assert worker(tmp_path, 4).newest() is None


def test_one_that_vanished_after_it_was_told_of_is_an_error_of_the_file(tmp_path: Path) -> None:
    worker(tmp_path, 3).hold(Progress(7, 0), lambda: {"x": 1})
    held = worker(tmp_path, 4)
    assert held.newest() is not None
    worker(tmp_path, 4).drop()
    with pytest.raises(FileNotFoundError, match="holds no state any more"):
        held.take()


# ---- any history of three nodes --------------------------------------------------------------------------------------


@dataclass
class Node:
    """Two workers on one node. `live`: the state that they have between two generations, None if they are dead."""

    folder: Path
    workers: list[Held] = field(default_factory=list)
    live: dict[str, int] | None = None

    def assigned(self, generation: int, count: int) -> None:
        """`count` of the workers hear of their place."""
        if self.live is None:
            self.workers = [Held(self.folder, 0.5), Held(self.folder, 0.5)]
        for held in self.workers[:count]:
            held.carry(generation)

    def die(self) -> None:
        self.workers, self.live = [], None


@dataclass(frozen=True)
class Round:
    """One generation: who is in it, and how far it gets."""

    members: frozenset[int]
    #: workers per node that heard of their place, when all members die before init is complete
    heard: tuple[int, int, int]
    #: nodes whose ranks had an equal state, when all die before the first step
    equal: frozenset[int]
    #: completed steps, None when all members die in init
    steps: int | None
    #: nodes on which the last step was not completed
    behind: frozenset[int]
    #: nodes that live to the end
    survive: frozenset[int]


NODES = frozenset(range(3))
some_nodes = st.frozensets(st.sampled_from(sorted(NODES)))
rounds = st.builds(
    Round,
    members=some_nodes.filter(bool),
    heard=st.tuples(*[st.integers(0, 2)] * 3),
    equal=some_nodes,
    steps=st.none() | st.integers(0, 3),
    behind=some_nodes,
    survive=some_nodes,
)


class History:
    """The job as an omniscient sees it: the last completed step, and in which generation that was."""

    def __init__(self, base: Path) -> None:
        self.nodes = [Node(base / str(number)) for number in sorted(NODES)]
        self.generation = 0
        self.newest = {"generation": 0, "step": 0}
        self.taken = 0

    def play(self, plan: Round) -> None:
        self.generation += 1
        for number in NODES - plan.members:  # planned away, or not there: a process is gone, a folder stays
            self.nodes[number].die()
        for number in plan.members:
            self.nodes[number].assigned(self.generation, plan.heard[number] if plan.steps is None else 2)
        if plan.steps is None:
            self._all_die(plan)
            return
        state = self._synchronize(plan)
        if plan.steps == 0:
            for number in plan.members & plan.equal:
                self.nodes[number].workers[0].drop()
            self._all_die(plan)
            return
        for number in plan.members:
            for held in self.nodes[number].workers:
                held.drop()
        before = {**state, "step": state["step"] + plan.steps - 1}
        if plan.steps > 1:
            before["generation"] = self.generation
        self.newest = {"generation": self.generation, "step": state["step"] + plan.steps}
        for number in plan.members:
            self._leave(self.nodes[number], before if number in plan.behind else self.newest, number in plan.survive)

    def _synchronize(self, plan: Round) -> dict[str, int]:
        """The furthest of what the members have, checked; the initial state or a checkpoint where there is none."""
        found = []
        for number in sorted(plan.members):
            node = self.nodes[number]
            offers = {held.newest() for held in node.workers}
            assert len(offers) == 1, "workers of one node see the same"
            for progress in offers - {None}:
                state = node.workers[0].take()
                assert progress == Progress(state["step"], 0)
                self._check(state)
                found.append(state)
            found += [node.live] if node.live is not None else []
        return max(found, key=lambda state: state["step"], default={"generation": 0, "step": 0})

    def _check(self, state: dict[str, int]) -> None:
        """A held state is of the last generation that completed a step, or as that one began with its only step."""
        self.taken += 1
        last = self.newest
        begun = last["step"] - 1
        assert state["generation"] == last["generation"] or state["step"] == begun, (state, last)
        assert begun <= state["step"] <= last["step"], (state, last)

    def _leave(self, node: Node, state: dict[str, int], survives: bool) -> None:
        if not survives:
            node.die()
            return
        node.live = state
        for held in node.workers:
            held.hold(Progress(state["step"], 0), lambda: dict(state))

    def _all_die(self, plan: Round) -> None:
        for number in plan.members:
            self.nodes[number].die()


@settings(max_examples=150, deadline=None)
@given(st.lists(rounds, min_size=1, max_size=12))
def test_no_history_offers_a_state_that_the_training_has_left_behind(history: list[Round]) -> None:
    with tempfile.TemporaryDirectory() as base:
        played = History(Path(base))
        for plan in history:
            played.play(plan)


def test_such_histories_do_take_held_states() -> None:
    everybody: dict[str, Any] = {"members": NODES, "heard": (2, 2, 2), "equal": frozenset(), "behind": frozenset()}
    with tempfile.TemporaryDirectory() as base:
        played = History(Path(base))
        played.play(Round(**everybody, steps=2, survive=NODES))
        played.play(Round(**everybody, steps=None, survive=frozenset()))
        played.play(Round(**everybody, steps=1, survive=NODES))
        assert played.taken == 3
        assert played.newest == {"generation": 3, "step": 3}
