"""The driver's decisions about spares, and about members that do not come back."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world_sim import Cluster, members_of

from edl_collective.coord.records import Plan, PlannedWorker, Rendezvous
from edl_collective.driver import world
from edl_collective.driver.state import NodesRead, PlanRead, Said, State, observe
from edl_collective.driver.world import Config, rank
from edl_collective.messages import AbortGeneration, InterruptWorker, LeaveWorker, NodeHello


def with_spares(*spares: str, config: Config | None = None) -> Cluster:
    """w1, w2 on a, w3 on b train; spares w4, ... wait at the gate; nobody leads any more."""
    cluster = Cluster(("a", "b", "c"), config)
    cluster.scale({"a": 2, "b": 1}, "start")
    cluster.settle()
    cluster.add_spares(*spares)
    cluster.settle()
    cluster.check()
    assert members_of(cluster) == ["w1", "w2", "w3"], "a spare joins no whole world"
    assert cluster.record.generation == 1
    cluster.leads = False
    return cluster


def run(cluster: Cluster) -> None:
    """Everything that happens without time passing."""
    while found := cluster.choices():
        found[0]()


class TestPromotion:
    @pytest.mark.parametrize("lost", ["w1", "w2", "w3"])
    def test_a_spare_takes_the_place_in_the_same_generation_without_a_leader(self, lost: str) -> None:
        cluster = with_spares("c")
        cluster.kill_worker(lost)
        run(cluster)
        assert cluster.record.generation == 2
        assert sorted(members_of(cluster)) == sorted({"w1", "w2", "w3", "w4"} - {lost})
        assert cluster.record.cause == f"worker {lost} killed by SIGKILL, w4 stood by"
        assert members_of(cluster)[0] == ("w2" if lost == "w1" else "w1"), "a survivor is rank 0"

    def test_a_lost_node_is_replaced_by_as_many_spares_as_there_are(self) -> None:
        cluster = with_spares("b")
        cluster.lose_node("a")
        cluster.settle()
        assert (cluster.record.generation, members_of(cluster)) == (2, ["w3", "w4"])
        assert cluster.now_s == cluster.config.absence_grace_s, "no leader has said that the node is lost"

    def test_no_more_spares_join_than_workers_were_lost(self) -> None:
        cluster = with_spares("c", "b")
        cluster.kill_worker("w2")
        run(cluster)
        assert members_of(cluster) == ["w1", "w3", "w4"]
        assert cluster.workers["w5"].state == "gate"

    def test_the_plan_that_adopts_the_spare_changes_no_world(self) -> None:
        cluster = with_spares("c")
        cluster.kill_worker("w2")
        run(cluster)
        cluster.adopt()
        assert {p.worker for p in cluster.plan.workers} == {"w1", "w3", "w4"}
        cluster.settle()
        cluster.check()
        assert cluster.record.generation == 2

    def test_a_replacement_planned_meanwhile_finds_its_seat_taken(self) -> None:
        cluster = with_spares("c")
        cluster.kill_worker("w2")
        cluster.scale({"a": 2, "b": 1}, "replace")
        run(cluster)
        assert members_of(cluster) == ["w1", "w3", "w4"]
        assert (cluster.record.generation, cluster.workers["w5"].state) == (2, "gate")

    def test_a_successor_keeps_the_promoted_spare(self) -> None:
        cluster = with_spares("c")
        cluster.kill_worker("w2")
        run(cluster)
        cluster.crash_driver()
        run(cluster)
        assert (cluster.record.generation, cluster.record.epoch) == (2, 2)
        assert cluster.workers["w4"].state == "running"

    def test_a_spare_that_was_not_ready_joins_when_it_is(self) -> None:
        cluster = with_spares("c")
        cluster.add_spares("b")
        cluster.workers["w5"].state = "packaging"
        cluster.kill_worker("w4")
        run(cluster)
        cluster.kill_worker("w2")
        run(cluster)
        assert members_of(cluster) == ["w1", "w3"]
        cluster.workers["w5"].state = "starting"
        run(cluster)
        assert (cluster.record.generation, members_of(cluster)) == (3, ["w1", "w3", "w5"])

    def test_a_world_that_nobody_survived_is_not_begun_again_from_spares(self) -> None:
        cluster = with_spares("c", "b")
        for worker in ("w1", "w2", "w3"):
            cluster.kill_worker(worker)
        cluster.settle()
        assert cluster.record.generation == 1
        cluster.leads = True
        cluster.settle()
        cluster.check()

    def test_a_spare_that_dies_costs_nothing(self) -> None:
        cluster = with_spares("c")
        cluster.kill_worker("w4")
        cluster.settle()
        assert (cluster.record.generation, cluster.workers["w1"].state) == (1, "running")

    def test_a_spare_that_the_plan_drops_leaves_and_a_spare_below_min_np_helps(self) -> None:
        cluster = with_spares("c", config=Config(min_np=3))
        cluster.kill_worker("w3")
        run(cluster)
        assert members_of(cluster) == ["w1", "w2", "w4"]
        cluster.scale({}, "stop")
        cluster.plan = world_without_spares(cluster.plan)
        cluster._tell(PlanRead(cluster.plan))
        cluster.settle()
        assert {w.state for w in cluster.workers.values() if w.name != "w3"} == {"left"}


def world_without_spares(plan: Plan) -> Plan:
    return Plan(
        revision=plan.revision + 1,
        workers=plan.workers,
        driver_node=plan.driver_node,
        reason="no spares",
        next_worker=plan.next_worker,
        leader_epoch=1,
    )


class TestThoseWhoNeverCome:
    def test_a_newcomer_waits_for_one_that_never_gets_warm_for_the_join_grace_only(self) -> None:
        cluster = with_spares()
        cluster.scale({"a": 3, "b": 2}, "grow")
        cluster.workers["w5"].state = "packaging"
        run(cluster)
        assert cluster.record.generation == 1
        cluster.settle()
        assert (members_of(cluster), cluster.record.generation) == (["w1", "w2", "w4", "w3"], 2)
        assert cluster.now_s == pytest.approx(cluster.config.join_grace_s)
        cluster.kill_worker("w5", "did not reach the gate")
        run(cluster)
        assert cluster.record.generation == 2, "its end costs nothing either"

    def test_growth_takes_a_warm_spare_at_once(self) -> None:
        cluster = with_spares("c")
        cluster.scale({"a": 3, "b": 1}, "grow")
        cluster.workers["w5"].state = "packaging"
        cluster.settle()
        assert (members_of(cluster), cluster.record.generation) == (["w1", "w2", "w3", "w4"], 2)
        assert cluster.now_s == 0.0


class TestThoseWhoDoNotComeBack:
    def test_a_hung_worker_is_given_up_after_a_loss(self) -> None:
        cluster = with_spares()
        cluster.workers["w3"].stopped = True
        cluster.kill_worker("w2")
        run(cluster)
        assert members_of(cluster) == ["w1"]
        assert "worker w3 did not come back" in cluster.record.cause

    def test_a_hung_worker_alone_is_aborted_a_grace_after_the_collectives_of_others_failed(self) -> None:
        cluster = with_spares("c")
        cluster.workers["w2"].stopped = True
        for worker in ("w1", "w3"):
            cluster.leave_by_itself(worker)
        run(cluster)
        assert cluster.record.generation == 1
        assert cluster.driver is not None
        assert cluster.driver.wake_at == pytest.approx(cluster.config.suspect_grace_s)
        cluster.settle()
        assert members_of(cluster) == ["w1", "w3", "w4"]
        assert cluster.now_s == pytest.approx(cluster.config.suspect_grace_s)

    def test_who_hangs_when_asked_to_the_gate_is_aborted_later(self) -> None:
        cluster = with_spares()
        cluster.workers["w2"].stopped = True
        cluster.scale({"a": 2, "b": 2}, "grow")
        cluster.settle()
        assert members_of(cluster) == ["w1", "w3", "w4"]
        assert cluster.now_s == pytest.approx(cluster.config.straggle_grace_s)

    def test_who_hangs_while_the_removed_leave_is_aborted_too(self) -> None:
        cluster = with_spares()
        cluster.workers["w2"].stopped = True
        cluster.scale({"a": 2}, "shrink")
        cluster.settle()
        assert members_of(cluster) == ["w1"]


def state_of(plan: Plan, **hellos: NodeHello) -> State:
    record = Rendezvous(generation=4, epoch=2, members=rank([("w1", "a"), ("w2", "b")]))
    state = observe(State(epoch=3, record=record, version=7), PlanRead(plan))
    state = observe(state, NodesRead({"a": "a-1", "b": "b-1"}))
    for node, hello in hellos.items():
        state = observe(state, Said(node, hello))
    return state


def messages(state: State, now_s: float = 0.0) -> list[object]:
    return [e.message for e in world.decide(state, now_s, Config()).effects if isinstance(e, world.Send)]


PLAN = Plan(
    revision=1,
    workers=(PlannedWorker("w1", "a", 0), PlannedWorker("w2", "b", 0)),
    driver_node="a",
    reason="start",
    next_worker=9,
    leader_epoch=1,
    spares=(PlannedWorker("w3", "b", 1),),
)


def test_a_spare_with_the_state_of_an_older_world_leaves() -> None:
    running = NodeHello(node="a", incarnation="a-1", generation=4, running={"w1": 4})
    fresh = NodeHello(node="b", incarnation="b-1", generation=4, running={"w2": 4}, gates={"w3": 0})
    old = NodeHello(node="b", incarnation="b-1", generation=4, running={"w2": 4}, gates={"w3": 2})
    assert not [m for m in messages(state_of(PLAN, a=running, b=fresh)) if isinstance(m, LeaveWorker)]
    assert [m.worker for m in messages(state_of(PLAN, a=running, b=old)) if isinstance(m, LeaveWorker)] == ["w3"]


def test_who_is_asked_at_a_step_boundary_is_not_aborted_while_nobody_is_back() -> None:
    """A step or an evaluation may take hours."""
    grown = Plan(
        revision=2,
        workers=(*PLAN.workers, PlannedWorker("w3", "b", 1)),
        driver_node="a",
        reason="grow",
        next_worker=9,
        leader_epoch=1,
    )
    state = state_of(
        grown,
        a=NodeHello(node="a", incarnation="a-1", generation=4, running={"w1": 4}),
        b=NodeHello(node="b", incarnation="b-1", generation=4, running={"w2": 4}, gates={"w3": 0}),
    )
    decision = world.decide(state, 0.0, Config())
    assert [m for m in messages(state) if isinstance(m, InterruptWorker)]
    later = world.decide(decision.state, 1e6, Config())
    assert (later.effects, later.wake_at) == ((), None)
    assert not [m for m in messages(state, 1e6) if isinstance(m, AbortGeneration)]


FAULTS = ("kill", "stop", "crash", "disconnect", "lose_node", "alone", "time", "adopt", "replace", "spare")


def strike(cluster: Cluster, fault: str, pick: int) -> None:
    alive = sorted(w.name for w in cluster.workers.values() if w.alive)
    running = [w for w in alive if cluster.workers[w].state == "running" and not cluster.workers[w].stopped]
    nodes = sorted(cluster.nodes)
    node = nodes[pick % len(nodes)]
    match fault:
        case "kill" if alive:
            cluster.kill_worker(alive[pick % len(alive)])
        case "stop" if running:
            cluster.workers[running[pick % len(running)]].stopped = True
        case "crash" if cluster.driver is not None:
            cluster.crash_driver()
        case "disconnect" if cluster.nodes[node].connected:
            cluster.disconnect(node)
        case "lose_node" if len(nodes) > 1:
            cluster.lose_node(node)
        case "alone" if running:
            cluster.leave_by_itself(running[pick % len(running)])
        case "time" if cluster.driver is not None and cluster.driver.wake_at is not None:
            cluster.now_s = max(cluster.now_s, cluster.driver.wake_at)
            cluster._turn()
        case "adopt":
            cluster.adopt()
        case "replace":
            cluster.replace_dead()
        case "spare":
            cluster.add_spares(node)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("step"), st.integers(0, 20)), st.tuples(st.sampled_from(FAULTS), st.integers(0, 20))
        ),
        max_size=80,
    ),
    st.integers(1, 3),
)
def test_any_order_of_events_ends_in_one_world_of_the_planned_size(script: list[tuple[str, int]], min_np: int) -> None:
    cluster = Cluster(("a", "b", "c"), Config(min_np=min_np))
    cluster.scale({"a": 1, "b": 1, "c": 1}, "start")
    cluster.add_spares("a", "b")
    for what, pick in script:
        if what != "step":
            strike(cluster, what, pick)
        elif found := cluster.choices():
            found[pick % len(found)]()
    for worker in cluster.workers.values():  # who hangs where no collective tells is found elsewhere
        if worker.stopped:
            cluster.kill_worker(worker.name)
    cluster.settle()
    if len(cluster.plan.workers) >= min_np:
        cluster.check()
