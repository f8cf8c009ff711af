"""A driver that dies before or after any of its effects, and random orders of events."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world_sim import Cluster, members_of, pass_time

from edl_collective.driver.world import Config


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
