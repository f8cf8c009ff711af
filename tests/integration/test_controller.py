"""The control loop, on a store that tests break."""

import socket
import threading
from collections.abc import Callable, Sequence

import pytest
from control_loop import NODE, SIGNER, SPEC, P, controller_on, has_workers, plan_of, put, until
from msgspec import structs

from edl_collective.coord.clock import ManualClock
from edl_collective.coord.errors import NotLeader, VersionConflict
from edl_collective.coord.leadership import Leadership
from edl_collective.coord.memory_store import MemoryStore, MemoryTree
from edl_collective.coord.records import JobStatus, Phase, decode, encode
from edl_collective.coord.store import Op
from jobserver.controller import Controller
from jobserver.reconcile import ReconcileConfig


def test_plans_and_statuses_are_written_with_their_events() -> None:
    store = MemoryStore()
    put(store, P.node("a"), NODE)
    put(store, P.spec("j"), SPEC)
    controller = controller_on(store)
    assert controller.step() is None
    plan = plan_of(store)
    assert plan is not None
    assert (len(plan.workers), plan.leader_epoch) == (2, 1)
    assert len(store.children(P.events("j"))) == 2
    assert "j: running, 2 workers" in controller.reason
    controller.step()
    assert plan_of(store) == plan
    controller.stop()
    assert store.get(P.leader) is None


def test_a_standby_writes_nothing_and_takes_over() -> None:
    tree = MemoryTree()
    first, second = MemoryStore(tree), MemoryStore(tree)
    leader, standby = controller_on(first), controller_on(second, "s2")
    leader.step()
    put(first, P.node("a"), NODE)
    put(first, P.spec("j"), SPEC)
    standby.step()
    assert plan_of(first) is None
    assert (leader.epoch, standby.epoch, standby.reason) == (1, None, "")
    first.expire()
    standby.step()
    plan = plan_of(second)
    assert plan is not None
    assert plan.leader_epoch == 2
    leader.stop()
    standby.stop()


def test_a_suspended_leader_decides_nothing() -> None:
    store = MemoryStore()
    controller = controller_on(store)
    controller.step()
    other = MemoryStore(store._tree)
    put(other, P.node("a"), NODE)
    put(other, P.spec("j"), SPEC)
    store.suspend()
    assert controller.step() is None
    assert plan_of(other) is None
    store.resume()
    controller.step()
    assert plan_of(other) is not None
    controller.stop()


class Interfering(MemoryStore):
    """A store on which `before` runs once, ahead of the next transaction, and `after` once, after the next one."""

    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None

    def transact(self, ops: Sequence[Op]) -> None:
        before, self.before = self.before, None
        if before is not None:
            before()
        super().transact(ops)
        after, self.after = self.after, None
        if after is not None:
            after()


def test_a_leader_that_was_replaced_cannot_write() -> None:
    tree = MemoryTree()
    old, new = Interfering(tree), MemoryStore(tree)
    controller = controller_on(old)
    controller.step()
    put(new, P.node("a"), NODE)
    put(new, P.spec("j"), SPEC)

    def usurp() -> None:
        new.delete(P.leader)
        assert Leadership(new, P, "s2", "http://s2").try_lead() == 2

    old.before = usurp
    with pytest.raises((NotLeader, VersionConflict)):
        controller.step()
    assert plan_of(new) is None
    controller.stop()
    assert new.get(P.leader) is not None, "resigning takes nobody else's lead"


def test_a_refused_write_means_look_again() -> None:
    tree = MemoryTree()
    store, agent = Interfering(tree), MemoryStore(tree)
    put(agent, P.node("a"), NODE)
    put(agent, P.spec("j"), SPEC)
    pending = JobStatus(phase=Phase.PENDING, reason="somebody else", since=1.0)
    store.before = lambda: put(agent, P.status("j"), pending)
    controller = controller_on(store)
    controller.start()
    until(lambda: plan_of(agent) is not None)
    controller.stop()
    found = agent.get(P.status("j"))
    assert found is not None
    assert decode(found.data, JobStatus).phase is Phase.RUNNING


def test_the_loop_sleeps_until_something_changes() -> None:
    store = MemoryStore()
    turns = threading.Semaphore(0)

    class Counting(Controller):
        def step(self) -> float | None:
            turns.release()
            return super().step()

    controller = Counting(store, P, Leadership(store, P, "s1", "http://s1"), ManualClock(), ReconcileConfig(), SIGNER)
    controller.start()
    until(lambda: controller.epoch is not None)
    until(lambda: not turns.acquire(timeout=0.5))  # its own writes wake it, then it must rest
    put(store, P.node("a"), NODE)
    assert turns.acquire(timeout=60)
    controller.stop()


def test_a_bug_in_a_rule_is_shown_and_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    controller = controller_on(store)
    load = controller.view.load
    broken = threading.Event()

    def fail() -> object:
        broken.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(controller.view, "load", fail)
    controller.start()
    assert broken.wait(60)
    until(lambda: controller.failure == "RuntimeError: a bug")
    monkeypatch.setattr(controller.view, "load", load)
    until(lambda: controller.failure is None)
    controller.stop()


def test_a_node_that_is_missing_after_an_outage_is_waited_for() -> None:
    tree = MemoryTree()
    store, of_node = MemoryStore(tree), MemoryStore(tree)
    clock = ManualClock(1000.0)
    controller = controller_on(store, clock=clock)
    of_node.create(P.node("a"), encode(NODE), ephemeral=True)
    put(store, P.spec("j"), SPEC)
    controller.step()
    before = plan_of(store)
    assert before is not None
    clock.advance(100.0)
    for session in (store, of_node):
        session.expire()
    store.resume()
    wake_s = controller.step()
    assert plan_of(store) == before
    assert wake_s == pytest.approx(ReconcileConfig().absence_timeout_s)
    of_node.resume()
    of_node.create(P.node("a"), encode(NODE), ephemeral=True)
    assert controller.step() is None
    clock.advance(100.0)
    assert controller.step() is None
    assert plan_of(store) == before
    of_node.expire()  # and now it is gone: ZooKeeper was in sight all the time
    controller.step()
    assert not has_workers(store, P, 2)
    controller.stop()


def test_a_node_that_does_not_come_back_after_an_outage_is_lost() -> None:
    tree = MemoryTree()
    store, of_node = MemoryStore(tree), MemoryStore(tree)
    clock = ManualClock(1000.0)
    controller = controller_on(store, clock=clock)
    of_node.create(P.node("a"), encode(NODE), ephemeral=True)
    put(store, P.spec("j"), SPEC)
    controller.step()
    for session in (store, of_node):
        session.expire()
    store.resume()
    controller.step()
    assert has_workers(store, P, 2)
    clock.advance(ReconcileConfig().absence_timeout_s)
    controller.step()
    assert has_workers(store, P, 0)
    controller.stop()


def test_a_node_that_registers_again_after_its_burial_is_not_buried_again() -> None:
    tree = MemoryTree()
    of_node, store = MemoryStore(tree), Interfering(tree)
    controller = controller_on(store)
    port_socket = socket.create_server(("127.0.0.1", 0))
    node = structs.replace(NODE, port=port_socket.getsockname()[1])
    of_node.create(P.node("a"), encode(node), ephemeral=True)
    controller.step()
    connection, _ = port_socket.accept()
    port_socket.close()
    connection.close()
    until(lambda: controller._watch.dead)
    burials: list[bool] = []

    def burial() -> None:
        """It is done, and the node, which lives after all, is back before the leader looks again."""
        burials.append(True)
        of_node.create(P.node("a"), encode(node), ephemeral=True)

    store.after = burial
    for _ in range(3):
        controller.step()
    assert burials == [True]
    assert of_node.get(P.node("a")) is not None
    assert "a" in controller.view.load().nodes
    controller.stop()


def test_a_leader_whose_session_is_longer_than_that_of_a_node_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    leadership = Leadership(store, P, "s1", "http://s1")
    controller = Controller(store, P, leadership, ManualClock(), ReconcileConfig(), SIGNER, session_timeout_s=10.0)
    for name, session_timeout_s in (("a", 4.0), ("b", 10.0), ("c", None)):
        put(store, P.node(name), structs.replace(NODE, node=name, session_timeout_s=session_timeout_s))
    for _ in range(2):
        controller.step()
        put(store, P.node("d"), structs.replace(NODE, node="d", session_timeout_s=20.0))
    warnings = [record.getMessage() for record in caplog.records if "--session-timeout" in record.getMessage()]
    assert len(warnings) == 1
    assert "lasts longer (10 s) than that of node a (4 s)" in warnings[0]
    controller.stop()
