"""A node's side of a job's world: who is answered what, and what a new driver is told."""

import pytest

from edl_collective.coord.records import Rendezvous
from edl_collective.driver.world import rank
from edl_collective.messages import (
    Abort,
    AbortGeneration,
    Assigned,
    AtGate,
    HasExited,
    HasFinished,
    Interrupt,
    InterruptWorker,
    IsRunning,
    Leave,
    LeaveWorker,
    Need,
    Table,
    World,
)
from jobclient.job_proxy import WAITING, Answer, LocalWorld, ToDriver, ToWorker, WorldChanged


def record(generation: int, *workers: str) -> Rendezvous:
    """A world of workers named as node + number: "a1" is on node a."""
    return Rendezvous(generation=generation, epoch=1, members=rank([(w, w[0]) for w in workers]), cause="start")


def node_a(*gates: str) -> LocalWorld[str]:
    local: LocalWorld[str] = LocalWorld("a", "a-1", lambda worker, generation: f"host/{worker}/{generation}")
    for worker in gates:
        local.gate(worker, 0)
    return local


def running(*workers: str, generation: int = 1) -> LocalWorld[str]:
    """Node a with those of `workers` that are on it running in a world of all of them."""
    mine = [w for w in workers if w[0] == "a"]
    local = node_a(*mine)
    local.heard(World(record=record(generation, *workers)))
    for worker in mine:
        local.running(worker, generation)
    return local


class TestGate:
    def test_a_worker_at_the_gate_is_reported(self) -> None:
        assert node_a().gate("a1", 0) == [ToDriver(AtGate(worker="a1", last_generation=0))]

    def test_a_new_world_answers_its_members_and_only_them(self) -> None:
        local = node_a("a1", "a2")
        actions = local.heard(World(record=record(1, "a1", "b1")))
        assert actions[0] == WorldChanged(record(1, "a1", "b1"))
        expected = Assigned(
            generation=1,
            epoch=1,
            rank=0,
            size=2,
            local_rank=0,
            local_size=1,
            cross_rank=0,
            cross_size=2,
            rendezvous="host/a1/1",
            cause="start",
        )
        assert actions[1:] == [ToWorker("a1", expected)]
        assert local.hello().gates == {"a2": 0}

    def test_a_lost_answer_is_given_again_from_the_record(self) -> None:
        local = node_a("a1")
        (_, first) = local.heard(World(record=record(3, "a1")))
        assert local.gate("a1", 2) == [first]

    def test_a_world_that_was_aborted_meanwhile_takes_nobody(self) -> None:
        local = node_a("a1", "a2")
        local.heard(AbortGeneration(generation=1))
        back = [ToDriver(AtGate(worker="a1", last_generation=1))]
        assert local.heard(World(record=record(1, "a1", "a2", "b1")))[1:2] == back
        assert local.gate("a2", 0) == [ToDriver(AtGate(worker="a2", last_generation=1))]
        assert local.hello().gates == {"a1": 1, "a2": 1}

    def test_the_same_world_twice_changes_nothing(self) -> None:
        local = running("a1", "b1")
        assert local.heard(World(record=record(1, "a1", "b1"))) == []
        assert local.hello().running == {"a1": 1}

    def test_an_older_world_is_ignored(self) -> None:
        local = running("a1", generation=2)
        local.gate("a1", 2)
        assert local.heard(World(record=record(1, "a1"))) == []
        assert local.record.generation == 2

    def test_a_world_without_the_worker_at_the_gate_leaves_it_there(self) -> None:
        local = running("a1", "b1")
        local.gate("a1", 1)
        local.heard(World(record=record(2, "b1")))
        assert local.hello().gates == {"a1": 1}
        assert local.heard(LeaveWorker(worker="a1", reason="shrink")) == [ToWorker("a1", Leave(reason="shrink"))]
        assert local.heard(LeaveWorker(worker="a1", reason="shrink")) == []


class TestNotices:
    def test_an_interrupt_reaches_a_worker_that_runs(self) -> None:
        local = running("a1", "b1")
        assert local.heard(InterruptWorker(worker="a1", generation=1)) == [ToWorker("a1", Interrupt(generation=1))]

    def test_an_interrupt_during_init_is_said_again_when_it_runs(self) -> None:
        local = node_a("a1")
        local.heard(World(record=record(1, "a1")))
        local.heard(InterruptWorker(worker="a1", generation=1))
        said = [ToDriver(IsRunning(worker="a1", generation=1)), ToWorker("a1", Interrupt(generation=1))]
        assert local.running("a1", 1) == said

    def test_an_abort_reaches_those_inside_that_generation(self) -> None:
        local = running("a1", "a2", "a3", "b1")
        local.gate("a3", 1)
        abort = Abort(generation=1)
        assert local.heard(AbortGeneration(generation=1)) == [ToWorker("a1", abort), ToWorker("a2", abort)]

    def test_an_abort_of_the_generation_before_touches_nobody(self) -> None:
        local = running("a1", generation=2)
        assert local.heard(AbortGeneration(generation=1)) == []

    def test_an_abort_during_init_is_said_again_when_it_runs(self) -> None:
        local = node_a("a1")
        local.heard(World(record=record(1, "a1")))
        assert local.heard(AbortGeneration(generation=1)) == [ToWorker("a1", Abort(generation=1))]
        assert ToWorker("a1", Abort(generation=1)) in local.running("a1", 1)


class TestHello:
    def test_it_holds_everything(self) -> None:
        local = running("a1", "a2", "a3", "a4", "b1")
        local.put("a1", 1, "global", "0", b"value")
        local.gate("a2", 1)
        assert local.exited("a3", "exit code 1") == [ToDriver(HasExited(worker="a3", detail="exit code 1"))]
        assert local.finished("a4") == [ToDriver(HasFinished(worker="a4"))]
        hello = local.hello()
        assert (hello.node, hello.incarnation, hello.generation) == ("a", "a-1", 1)
        assert (hello.gates, hello.running) == ({"a2": 1}, {"a1": 1, "a4": 1})
        assert (hello.exits, hello.finished) == ({"a3": "exit code 1"}, ("a4",))
        assert hello.puts == {"global": {"0": b"value"}}

    def test_a_worker_that_is_still_joining_is_told_apart_from_one_stuck_in_an_older_world(self) -> None:
        local = node_a("a1")
        local.heard(World(record=record(1, "a1", "b1")))
        assert local.hello().assigned == ("a1",)
        local.heard(World(record=record(2, "b1")))
        assert (local.hello().assigned, local.hello().running) == ((), {"a1": 1})

    def test_exits_of_former_worlds_are_forgotten(self) -> None:
        local = running("a1", "a2")
        local.exited("a2", "killed by SIGKILL")
        local.gate("a1", 1)
        local.heard(World(record=record(2, "a1")))
        assert local.hello().exits == {}


class TestKeys:
    def test_a_key_that_is_not_there_is_held_until_it_is_put(self) -> None:
        local = running("a1", "a2")
        assert local.get("a1", 1, "global", "1", "ticket") is WAITING
        assert local.put("a2", 1, "global", "1", b"v") == [Answer("ticket", b"v")]
        assert local.get("a1", 1, "global", "1", "other") == b"v"

    def test_a_key_of_another_node_arrives_with_a_table(self) -> None:
        local = running("a1", "b1")
        assert local.get("a1", 1, "global", "1", "ticket") is WAITING
        assert local.missing() == Need(generation=1, keys={"global": ("1",)})
        table = Table(generation=1, puts={"global": {"1": b"v"}})
        assert local.heard(table) == [Answer("ticket", b"v")]
        assert local.missing() is None

    def test_whether_a_lower_rank_is_there_is_answered_at_once(self) -> None:
        local = running("a1", "b1")
        assert local.get("a1", 1, "global", "rank_0", "ticket") is None

    @pytest.mark.parametrize("generation", [0, 1, 3])
    def test_another_generation_is_never_answered(self, generation: int) -> None:
        local = running("a1", generation=2)
        assert local.get("a1", generation, "global", "rank_0", "ticket") is WAITING
        assert local.put("a1", generation, "global", "0", b"v") is WAITING
        assert local.missing() is None
        assert local.get("a1", 2, "global", "0", "ticket") is WAITING

    def test_a_worker_outside_the_world_is_never_answered(self) -> None:
        local = running("a1", "b1")
        assert local.get("a2", 1, "rank_and_size", "a:0", "ticket") is WAITING

    def test_held_requests_and_keys_end_with_their_generation(self) -> None:
        local = running("a1", "b1")
        local.get("a1", 1, "global", "1", "ticket")
        local.put("a1", 1, "global", "0", b"old")
        local.gate("a1", 1)
        local.heard(World(record=record(2, "a1", "b1")))
        assert local.heard(Table(generation=1, puts={"global": {"1": b"late"}})) == []
        assert local.heard(Table(generation=2, puts={"global": {"1": b"new"}})) == []
        assert local.get("a1", 2, "global", "0", "ticket") is WAITING
        assert local.hello().puts == {}

    def test_the_place_comes_from_the_record(self) -> None:
        local = running("a1", "a2", "b1")
        assert local.get("a2", 1, "rank_and_size", "a:1", "ticket") == b"1,3,1,2,0,1"
        assert local.get("a2", 1, "rank_and_size", "a2~:0", "ticket") == b"1,3,0,1,0,1", "alone on its host"

    def test_only_keys_that_others_need_are_passed_on_and_once(self) -> None:
        local = running("a1", "b1")
        for scope, key in (("global", "0"), ("global", "rank_0"), ("local_a", "0")):
            local.put("a1", 1, scope, key, b"v")
        assert local.take_unsaid() == {"global": {"0": b"v"}}
        assert local.take_unsaid() == {}

    def test_an_abort_answers_what_is_held_and_what_comes_later(self) -> None:
        local = running("a1", "a2", "b1")
        local.get("a1", 1, "global", "1", "early")
        refused = [a for a in local.heard(AbortGeneration(generation=1)) if isinstance(a, Answer)]
        assert refused == [Answer("early", None)]
        assert local.get("a2", 1, "global", "1", "late") is None
        assert local.missing() is None

    def test_an_abort_answers_what_is_held_of_an_older_generation(self) -> None:
        local = running("a1", "b1")
        local.get("a1", 1, "global", "1", "before")
        local.heard(World(record=record(2, "b1")))
        local.get("a1", 1, "global", "2", "after")
        local.get("a1", 3, "global", "2", "future")
        local.drop("never held")
        refused = [a for a in local.heard(AbortGeneration(generation=1)) if isinstance(a, Answer)]
        assert refused == [Answer("before", None), Answer("after", None)]
        assert local.get("a1", 1, "global", "3", "late") is None
        assert local.put("a1", 1, "global", "3", b"v") == []
        assert local.hello().puts == {}

    def test_an_abort_of_an_older_generation_leaves_the_newest_waiting(self) -> None:
        local = running("a1", "b1", generation=2)
        local.get("a1", 2, "global", "1", "ticket")
        assert local.heard(AbortGeneration(generation=1)) == []
        assert local.missing() == Need(generation=2, keys={"global": ("1",)})

    def test_a_closed_connection_is_not_answered(self) -> None:
        local = running("a1", "b1")
        local.get("a1", 1, "global", "1", "ticket")
        local.drop("ticket")
        assert local.heard(Table(generation=1, puts={"global": {"1": b"v"}})) == []
