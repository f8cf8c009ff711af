"""The driver's decisions: tables for the rules, replays from every interrupted point, random orders of events."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world_sim import Cluster

from edl_collective.coord.records import Plan, PlannedWorker, Rendezvous
from edl_collective.driver import world
from edl_collective.driver.state import NodesRead, PlanRead, Said, State, WriteConflict, observe
from edl_collective.driver.world import Config, rank
from edl_collective.messages import AbortGeneration, AtGate, LeaveWorker, NodeHello, World


def members_of(cluster: Cluster) -> list[str]:
    return [m.worker for m in cluster.record.members]


def started(want: dict[str, int], config: Config | None = None) -> Cluster:
    cluster = Cluster(config=config)
    cluster.scale(want, "start")
    cluster.settle()
    cluster.check()
    return cluster


def pass_time(cluster: Cluster) -> None:
    """Until the driver wants to decide again."""
    assert cluster.driver is not None
    assert cluster.driver.wake_at is not None
    cluster.now_s = max(cluster.now_s, cluster.driver.wake_at)
    cluster._turn()


class TestRules:
    def test_first_world_holds_all_planned_workers(self) -> None:
        cluster = started({"a": 2, "b": 1})
        assert members_of(cluster) == ["w1", "w2", "w3"]
        assert (cluster.record.generation, cluster.record.cause) == (1, "start")

    def test_scale_up_keeps_the_survivors_lowest_on_their_node(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.scale({"a": 2, "b": 2}, "scale 2 to 4 (schedule, epoch 3)")
        cluster.settle()
        cluster.check()
        assert members_of(cluster) == ["w1", "w3", "w2", "w4"]
        assert cluster.record.generation == 2, "both newcomers join in one generation"
        assert cluster.record.cause == "plan: scale 2 to 4 (schedule, epoch 3)"
        assert cluster.record.plan_revision == cluster.plan.revision

    def test_scale_down_lets_the_removed_leave(self) -> None:
        cluster = started({"a": 2, "b": 2})
        cluster.scale({"a": 1, "b": 1})
        cluster.settle()
        cluster.check()
        assert cluster.workers["w2"].state == "left"
        assert cluster.record.cause == "plan: scale"

    def test_a_killed_worker_is_named_in_the_cause(self) -> None:
        cluster = started({"a": 2, "b": 2})
        cluster.kill_worker("w3")
        while cluster.record.generation == 1:
            cluster.choices()[0]()
        assert cluster.record.cause == "worker w3 killed by SIGKILL"
        assert members_of(cluster) == ["w1", "w2", "w4"], "survivors do not wait for the replacement"

    def test_a_lost_node_is_named_in_the_cause(self) -> None:
        cluster = started({"a": 2, "b": 2})
        cluster.lose_node("b")
        cluster.replace_dead()
        while cluster.record.generation == 1:
            cluster.choices()[0]()
        assert cluster.record.cause == "node b is gone"
        assert members_of(cluster) == ["w1", "w2"]
        assert cluster.now_s == 0.0, "the plan of the leader has said so"

    def test_a_node_is_lost_in_the_end_though_nobody_leads(self) -> None:
        cluster = started({"a": 2, "b": 2})
        cluster.lose_node("b")
        assert not cluster.choices()
        assert cluster.driver is not None
        assert cluster.driver.reason == "waiting for the JobClient of node b"
        assert cluster.driver.wake_at == cluster.config.absence_grace_s
        cluster.settle()
        cluster.check()

    def test_an_outage_that_ends_all_sessions_ends_no_world(self) -> None:
        cluster = started({"a": 2, "b": 2})
        for node in ("a", "b"):
            cluster.hide_node(node)
        for _ in range(20):  # they are asked again and again, and answer
            while cluster.choices():
                cluster.choices()[0]()
            pass_time(cluster)
        assert cluster.now_s > 5 * cluster.config.answer_grace_s
        cluster.show_nodes()
        cluster.settle()
        cluster.check()
        assert cluster.record.generation == 1

    def test_a_driver_that_starts_in_an_outage_waits_for_the_nodes(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.crash_driver()
        for node in ("a", "b"):
            cluster.hide_node(node)
        cluster.start_driver()
        assert cluster.driver is not None
        assert cluster.driver.reason == "waiting for the JobClient of node a, b"
        cluster.show_nodes()
        cluster.settle()
        cluster.check()
        assert (cluster.record.generation, cluster.record.epoch) == (1, 2)

    def test_a_worker_killed_in_an_outage_is_a_loss_and_nobody_else(self) -> None:
        cluster = started({"a": 2, "b": 2})
        for node in ("a", "b"):
            cluster.hide_node(node)
        cluster.kill_worker("w4")
        while cluster.choices():
            cluster.choices()[0]()
        assert members_of(cluster) == ["w1", "w2", "w3"]
        assert cluster.record.cause == "worker w4 killed by SIGKILL"

    def test_a_connected_node_that_is_missing_and_silent_is_lost(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.hide_node("b")
        cluster.nodes["b"].from_driver.clear()  # the question is not heard: its JobClient hangs
        assert cluster.driver is not None
        assert cluster.driver.wake_at == cluster.config.absence_grace_s, "the leader is to judge"
        cluster.scale({"a": 1, "b": 0}, "w2 was lost with node b")
        cluster.nodes["b"].from_driver.clear()
        assert AbortGeneration(generation=1) not in cluster.nodes["a"].from_driver
        pass_time(cluster)
        assert cluster.now_s == cluster.config.answer_grace_s
        assert AbortGeneration(generation=1) in cluster.nodes["a"].from_driver

    def test_a_node_that_only_the_leader_has_lost_leaves_at_a_step_boundary(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.hide_node("b")
        cluster.scale({"a": 1, "b": 0}, "w2 was lost with node b")
        while cluster.choices():
            cluster.choices()[0]()
        assert members_of(cluster) == ["w1"]
        assert cluster.workers["w2"].state == "left"
        assert cluster.record.cause == "plan: w2 was lost with node b"

    def test_a_node_that_came_back_without_a_worker_is_not_waited_for(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.lose_node("a")
        cluster.return_node("a")
        cluster.scale({"b": 2})
        cluster.settle()
        cluster.check()
        assert members_of(cluster) == ["w2", "w3"]

    def test_nobody_left_restarts_from_fresh_workers(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.kill_worker("w1")
        cluster.kill_worker("w2")
        cluster.settle()
        cluster.check()
        assert members_of(cluster) == ["w3", "w4"]
        assert cluster.record.cause.startswith("restart: worker w1 killed by SIGKILL")

    def test_a_collective_that_failed_without_a_loss_forms_the_same_world_again(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.leave_by_itself("w2")
        cluster.settle()
        cluster.check()
        assert cluster.record.generation == 2
        assert "no loss known" in cluster.record.cause

    def test_suspicion_waits_for_its_grace(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.leave_by_itself("w2")
        while cluster.choices():
            cluster.choices()[0]()
        assert cluster.workers["w1"].state == "running"
        assert cluster.driver is not None
        assert cluster.driver.wake_at == pytest.approx(cluster.now_s + cluster.config.suspect_grace_s)

    def test_below_min_np_holds_and_resumes(self) -> None:
        cluster = started({"a": 1, "b": 1}, Config(min_np=2))
        cluster.lose_node("b")
        cluster.settle()
        assert cluster.driver is not None
        assert "holding with 1 of at least 2" in cluster.driver.reason
        assert cluster.record.generation == 1
        cluster.return_node("b")
        cluster.scale({"a": 1, "b": 1})
        cluster.settle()
        cluster.check()

    def test_a_finished_worker_is_no_loss(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.finish("w1")
        cluster.kill_worker("w1", "exit code 0")
        while cluster.choices():
            cluster.choices()[0]()
        assert cluster.workers["w2"].state == "running"
        assert cluster.record.generation == 1
        cluster.finish("w2")
        cluster.kill_worker("w2", "exit code 0")
        while cluster.choices():
            cluster.choices()[0]()
        assert cluster.record.generation == 1

    def test_a_worker_killed_while_another_has_finished_leaves_the_rest_a_world(self) -> None:
        cluster = started({"a": 2, "b": 1}, Config(min_np=2))
        cluster.finish("w1")
        cluster.kill_worker("w1", "exit code 0")
        cluster.kill_worker("w2")
        while cluster.choices():
            cluster.choices()[0]()
        assert members_of(cluster) == ["w3"]
        assert cluster.workers["w3"].state == "running"

    def test_a_new_attempt_forms_a_world_though_a_worker_of_the_former_had_finished(self) -> None:
        cluster = started({"a": 1, "b": 1}, Config(min_np=2))
        cluster.finish("w2")
        cluster.kill_worker("w2", "exit code 0")
        cluster.kill_worker("w1")
        cluster.scale({"a": 1, "b": 1}, "rank 0 did not finish: attempt 2")
        cluster.settle()
        cluster.check()
        assert members_of(cluster) == ["w3", "w4"]
        assert cluster.record.cause == "restart: worker w1 killed by SIGKILL"

    def test_a_new_attempt_takes_out_who_was_too_slow_to_finish(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.finish("w2")
        cluster.kill_worker("w2", "exit code 0")
        cluster.scale({}, "finish_timeout_s")
        cluster.scale({"a": 1, "b": 1}, "rank 0 did not finish: attempt 2")
        cluster.settle()
        cluster.check()
        assert cluster.workers["w1"].state == "left"

    def test_a_newcomer_does_not_begin_again_when_all_have_finished(self) -> None:
        cluster = started({"a": 1, "b": 1})
        cluster.scale({"a": 2, "b": 1})
        for worker in ("w1", "w2"):
            cluster.finish(worker)
            cluster.kill_worker(worker, "exit code 0")
        while cluster.choices():
            cluster.choices()[0]()
        assert cluster.workers["w3"].state == "gate"
        assert cluster.record.generation == 1

    @pytest.mark.parametrize("kills", [True, False])
    def test_a_worker_killed_in_init_does_not_keep_the_others_there(self, kills: bool) -> None:
        cluster = Cluster()
        cluster.kills = kills
        cluster.scale({"a": 2, "b": 1}, "start")
        while "init" not in {w.state for w in cluster.workers.values()}:
            cluster.choices()[0]()
        cluster.kill_worker(next(w.name for w in cluster.workers.values() if w.state == "init"))
        cluster.settle()
        cluster.check()

    def test_stopping_lets_everybody_leave(self) -> None:
        cluster = started({"a": 2, "b": 1})
        cluster.scale({}, "stop")
        cluster.settle()
        assert {w.state for w in cluster.workers.values()} == {"left"}
        assert cluster.record.generation == 1

    def test_a_standby_that_dies_costs_nothing(self) -> None:
        cluster = started({"a": 1})
        cluster.scale({"a": 2})
        cluster.kill_worker("w2")
        while cluster.choices():
            cluster.choices()[0]()
        assert cluster.workers["w1"].state == "running"
        assert cluster.record.generation == 1

    def test_first_world_forms_without_the_missing_after_its_grace(self) -> None:
        cluster = Cluster(config=Config(min_np=1, form_grace_s=10.0))
        cluster.scale({"a": 1, "b": 1}, "start")
        cluster.workers["w2"].state = "packaging"
        cluster.settle()
        assert cluster.now_s == pytest.approx(10.0)
        assert members_of(cluster) == ["w1"]

    def test_a_newcomer_waits_a_little_for_the_other(self) -> None:
        cluster = started({"a": 1})
        cluster.scale({"a": 3})
        cluster.workers["w3"].state = "packaging"
        while cluster.choices():
            cluster.choices()[0]()
        assert cluster.workers["w1"].state == "running"
        cluster.workers["w3"].state = "starting"
        cluster.settle()
        cluster.check()
        assert cluster.record.generation == 2


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


# ---- the driver dies before or after any of its effects ----------------------------------------------------------


def life_of_a_job(cluster: Cluster) -> None:
    """Form, grow, lose a worker, shrink, lose a node."""
    cluster.scale({"a": 2, "b": 1}, "start")
    cluster.settle()
    cluster.scale({"a": 2, "b": 2}, "grow")
    cluster.settle()
    cluster.kill_worker(members_of(cluster)[0])
    cluster.settle()
    cluster.scale({"a": 1, "b": 2}, "shrink")
    cluster.settle()
    cluster.lose_node("b")
    cluster.settle()
    cluster.check()


def count_effects() -> int:
    cluster = Cluster()
    life_of_a_job(cluster)
    return cluster.effects


EFFECTS = count_effects()


@pytest.mark.parametrize("fail_at", range(1, EFFECTS + 1))
def test_replay_with_the_driver_dead_at_each_effect(fail_at: int) -> None:
    cluster = Cluster()
    cluster.crash_at = {fail_at}
    life_of_a_job(cluster)
    assert cluster.record.epoch == 2, "the crash happened"
    assert len(cluster.record.members) == 1


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(1, 2 * EFFECTS), max_size=12))
def test_replay_with_the_driver_dead_at_many_effects(fail_at: set[int]) -> None:
    cluster = Cluster()
    cluster.crash_at = fail_at
    life_of_a_job(cluster)


FAULTS = ("kill", "grow", "shrink", "crash", "disconnect", "lose_node", "alone", "restart_node", "hide", "show", "time")


def strike(cluster: Cluster, fault: str, pick: int) -> None:
    alive = sorted(w.name for w in cluster.workers.values() if w.alive)
    nodes = sorted(cluster.nodes)
    node = nodes[pick % len(nodes)]
    want = {n: sum(p.node == n for p in cluster.plan.workers) for n in nodes}
    match fault:
        case "kill" if alive:
            cluster.kill_worker(alive[pick % len(alive)])
        case "grow":
            cluster.scale({**want, node: want[node] + 1}, "grow")
        case "shrink" if sum(want.values()) > 1 and want[node]:
            cluster.scale({**want, node: want[node] - 1}, "shrink")
        case "crash" if cluster.driver is not None:
            cluster.crash_driver()
        case "disconnect" if cluster.nodes[node].connected:
            cluster.disconnect(node)
        case "lose_node" if len(nodes) > 1:
            cluster.lose_node(node)
        case "hide":
            cluster.hide_node(node)
        case "show":
            cluster.show_nodes()
        case "restart_node":
            cluster.lose_node(node)
            cluster.return_node(node)
        case "alone":
            running = [w for w in alive if cluster.workers[w].state == "running"]
            if running:
                cluster.leave_by_itself(running[pick % len(running)])
        case "time" if cluster.driver is not None and cluster.driver.wake_at is not None:
            pass_time(cluster)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("step"), st.integers(0, 20)), st.tuples(st.sampled_from(FAULTS), st.integers(0, 20))
        ),
        max_size=80,
    ),
    st.integers(1, 2),
    st.booleans(),
)
def test_any_order_of_events_ends_in_one_world(script: list[tuple[str, int]], min_np: int, kills: bool) -> None:
    cluster = Cluster(("a", "b", "c"), Config(min_np=min_np))
    cluster.kills = kills
    cluster.scale({"a": 1, "b": 1, "c": 1}, "start")
    for what, pick in script:
        if what != "step":
            strike(cluster, what, pick)
        elif found := cluster.choices():
            found[pick % len(found)]()
    cluster.show_nodes()
    cluster.settle()
    if len(cluster.plan.workers) >= min_np:
        cluster.check()
