"""Single decisions of the driver, and the ranks of a world."""

import pytest

from edl_collective.coord.records import Plan, PlannedWorker, Rendezvous
from edl_collective.driver import world
from edl_collective.driver.state import NodesRead, PlanRead, Said, State, WriteConflict, observe
from edl_collective.driver.world import Config, rank
from edl_collective.messages import AbortGeneration, AtGate, LeaveWorker, NodeHello, World


def fresh_state(**changes: object) -> State:
    record = Rendezvous(generation=4, epoch=2, members=rank([("w1", "a"), ("w2", "b")]))
    plan = Plan(
        revision=1,
        workers=(PlannedWorker("w1", "a", 0), PlannedWorker("w2", "b", 0)),
        driver_node="a",
        reason="start",
        next_worker=5,
        leader_epoch=1,
    )
    state = State(epoch=3, record=record, version=7)
    for event in (PlanRead(plan), NodesRead({"a": "a-1", "b": "b-1"})):
        state = observe(state, event)
    return state


def hear(state: State, node: str, **what: object) -> State:
    return observe(state, Said(node, NodeHello(node=node, incarnation=f"{node}-1", **what)))  # type: ignore[arg-type]


class TestSingleDecisions:
    def test_a_lost_world_is_aborted_before_it_is_said(self) -> None:
        state = hear(fresh_state(), "a", generation=3, gates={"w1": 3})
        state = hear(state, "b", generation=4, exits={"w2": "killed by SIGKILL"})
        sent = [e.message for e in world.decide(state, 0.0, Config()).effects if isinstance(e, world.Send)]
        first = next(m for m in sent if isinstance(m, World | AbortGeneration))
        assert first == AbortGeneration(generation=4)

    def test_waits_for_the_hello_of_each_members_node(self) -> None:
        state = hear(fresh_state(), "a", generation=4, gates={"w1": 4})
        decision = world.decide(state, 0.0, Config())
        assert "waiting for the JobClient of node b" in decision.reason
        assert not any(isinstance(e, world.WriteRecord) for e in decision.effects)

    def test_a_hello_of_another_incarnation_is_not_waited_for_but_does_not_count(self) -> None:
        state = hear(fresh_state(), "a", generation=4, running={"w1": 4})
        state = observe(state, Said("b", NodeHello(node="b", incarnation="b-0", generation=4, running={"w2": 4})))
        assert "waiting for the JobClient of node b" in world.decide(state, 0.0, Config()).reason

    def test_a_lost_reply_is_sent_again(self) -> None:
        state = hear(fresh_state(), "a", generation=3, gates={"w1": 3})
        state = hear(state, "b", generation=4, assigned=("w2",))
        decision = world.decide(state, 0.0, Config())
        assert world.Send("a", World(record=state.record)) in decision.effects
        assert not any(isinstance(e, world.WriteRecord) for e in decision.effects)
        again = observe(decision.state, Said("a", AtGate(worker="w1", last_generation=3)))
        assert world.Send("a", World(record=state.record)) in world.decide(again, 0.0, Config()).effects

    def test_nothing_is_said_twice_on_a_connection(self) -> None:
        state = hear(fresh_state(), "a", generation=4, running={"w1": 4})
        state = hear(state, "b", generation=4, running={"w2": 4})
        first = world.decide(state, 0.0, Config())
        assert first.effects
        assert world.decide(first.state, 0.0, Config()).effects == ()

    def test_a_former_member_that_is_not_planned_is_told_to_leave(self) -> None:
        state = hear(fresh_state(), "a", generation=4, running={"w1": 4}, gates={"w4": 2})
        state = hear(state, "b", generation=4, running={"w2": 4})
        sent = [e.message for e in world.decide(state, 0.0, Config()).effects if isinstance(e, world.Send)]
        assert [m.worker for m in sent if isinstance(m, LeaveWorker)] == ["w4"]

    def test_a_worker_of_a_plan_that_is_not_read_yet_is_left_waiting(self) -> None:
        state = hear(fresh_state(), "a", generation=4, running={"w1": 4}, gates={"w9": 0})
        state = hear(state, "b", generation=4, running={"w2": 4})
        sent = [e.message for e in world.decide(state, 0.0, Config()).effects if isinstance(e, world.Send)]
        assert not [m for m in sent if isinstance(m, LeaveWorker)]

    def test_a_lost_compare_and_set_stops_the_driver(self) -> None:
        decision = world.decide(observe(fresh_state(), WriteConflict()), 0.0, Config())
        assert decision.effects == (world.Stop(),)

    def test_an_older_plan_is_ignored(self) -> None:
        state = fresh_state()
        older = Plan(revision=0, workers=(), driver_node=None, reason="", next_worker=1, leader_epoch=1)
        assert observe(state, PlanRead(older)).plan == state.plan

    def test_a_config_that_cannot_work_is_refused(self) -> None:
        with pytest.raises(ValueError, match="min_np is 0"):
            Config(min_np=0)
        with pytest.raises(ValueError, match="join_grace_s is -1"):
            Config(join_grace_s=-1)


def test_ranks_of_an_uneven_world() -> None:
    members = rank([("w1", "a"), ("w5", "b"), ("w2", "a"), ("w3", "c"), ("w4", "a")])
    places = {m.worker: (m.rank, m.local_rank, m.local_size, m.cross_rank, m.cross_size) for m in members}
    assert places == {
        "w1": (0, 0, 3, 0, 3),
        "w2": (1, 1, 3, 0, 1),
        "w4": (2, 2, 3, 0, 1),
        "w5": (3, 0, 1, 1, 3),
        "w3": (4, 0, 1, 2, 3),
    }
