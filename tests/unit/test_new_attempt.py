"""What the JobServer plans when training ended without the worker that saves, and what the driver makes of it."""

from job_world import running

from edl_collective.coord.records import Plan, Rendezvous
from edl_collective.driver import world
from edl_collective.driver.state import NodesRead, PlanRead, Said, State, observe
from edl_collective.messages import NodeHello


def members_after(plan: Plan, former: Rendezvous, finished: str, nodes: dict[str, str]) -> list[str]:
    """The world that a driver forms once all workers of `plan` are at the gate; `finished` is of the `former` one."""
    state = State(epoch=1, record=former, version=1)
    state = observe(observe(state, PlanRead(plan)), NodesRead(nodes))
    for node, incarnation in nodes.items():
        gates = {p.worker: 0 for p in plan.workers if p.node == node}
        done = tuple(m.worker for m in former.members if m.node == node and m.worker == finished)
        hello = NodeHello(node=node, incarnation=incarnation, generation=1, gates=gates, finished=done)
        state = observe(state, Said(node, hello))
    decision = world.decide(state, 0.0, world.Config())
    assert decision.state.writing is not None, decision.reason
    return [m.worker for m in decision.state.writing.members]


def test_the_plan_of_a_new_attempt_gets_its_world() -> None:
    cluster = running(2)
    former = cluster.jobs["j"].rendezvous
    assert [m.worker for m in former.members] == ["w1", "w2"]
    cluster.finish("w2")
    cluster.fail("w1")
    cluster.settle()
    assert (cluster.status().attempt, cluster.ids()) == (2, ["w3", "w4"])
    nodes = {name: record.incarnation for name, record in cluster.nodes.items()}
    assert sorted(members_after(cluster.plan(), former, "w2", nodes)) == ["w3", "w4"]
