"""The decision about spares, and about standbys that die beside a running world."""

from job_world import World, running

from edl_collective.coord.records import Outcome, Phase, WorkerState


def with_spare(np: int = 2, nodes: int = 3, slots: int = 1, **fields: int) -> World:
    world = running(np, nodes=nodes, slots=slots, spares=1, **fields)
    world.run_workers()
    world.settle()
    assert len(world.spares()) == 1
    return world


def test_a_spare_stands_by_on_a_node_of_its_own() -> None:
    world = with_spare()
    assert [(w.worker, w.node) for w in world.plan().spares] == [("w3", "c")]
    assert world.status().reason == "2 workers: np 2 was asked for"
    assert (world.status().failures, world.plan().next_worker) == (0, 4)


def test_a_dead_worker_is_replaced_by_the_spare_and_the_spare_by_a_new_one() -> None:
    world = with_spare()
    world.fail("w1")
    world.settle()
    assert (world.ids(), world.spares()) == (["w2", "w3"], ["w4"])
    assert world.plan().reason.startswith("w1 failed on a (killed by signal 9); w3 stood by and takes a place")
    assert world.status().failures == 1


def test_the_spare_that_the_driver_took_is_a_worker() -> None:
    world = running(2, nodes=4, slots=1, spares=2)
    world.run_workers()
    assert world.spares() == ["w3", "w4"]
    world.fail("w1")
    world.form("w2", "w4")  # w3 was not at the gate yet
    world.settle()
    assert (world.ids(), world.spares()) == (["w2", "w4"], ["w3", "w5"])
    assert world.status().attempt == 1


def test_two_hands_that_reach_for_different_spares_agree() -> None:
    """The leader took w3 before it knew that the driver had taken w4."""
    world = running(2, nodes=4, slots=1, spares=2)
    world.run_workers()
    world.fail("w1")
    world.settle()
    assert world.ids() == ["w2", "w3"]
    world.form("w2", "w4")
    world.settle()
    assert (world.ids(), world.spares()) == (["w2", "w4"], ["w3", "w5"])


def test_a_world_of_promoted_spares_is_no_new_attempt() -> None:
    world = with_spare()
    world.form("w2", "w3")
    for name in ("w1", "w2"):
        world.fail(name)
    world.settle()
    assert world.ids()[0] == "w3"
    assert world.status().attempt == 1


def test_spares_begin_a_new_attempt() -> None:
    world = with_spare()
    for name in ("w1", "w2"):
        world.fail(name)
    world.settle()
    assert world.ids() == ["w3", "w4"]
    assert (world.status().attempt, world.status().restarts) == (2, 1)


def test_growth_takes_the_warm_spare_first() -> None:
    world = with_spare(nodes=4)
    world.edit(np=3)
    world.settle()
    assert (world.ids(), world.spares()) == (["w1", "w2", "w3"], ["w4"])


def test_another_job_gets_the_slot_of_the_spare() -> None:
    world = with_spare()
    world.submit("second")
    world.settle()
    assert world.spares() == []
    assert world.plan().reason == "no spares beside the workers"
    world.let_go()
    world.settle()
    assert [w.node for w in world.plan("second").workers] == ["c"]
    assert world.spares() == []


def test_a_draining_node_keeps_no_spare() -> None:
    world = with_spare(nodes=4)
    world.drain("c")
    world.settle()
    assert [(w.worker, w.node) for w in world.plan().spares] == [("w4", "d")]
    assert world.ids() == ["w1", "w2"]


def test_spares_of_an_ended_job_go() -> None:
    world = with_spare()
    world.edit(stopped=True)
    world.settle()
    assert world.plan().everybody == ()


def test_a_worker_that_finished_as_a_promoted_spare_finishes_the_job() -> None:
    world = with_spare()
    world.form("w3", "w2")
    world.finish("w3")
    world.settle()
    assert world.status().phase is Phase.FINISHING
    world.finish("w2")
    world.settle()
    assert world.status().phase is Phase.SUCCEEDED


# ---- standbys that die -------------------------------------------------------------------------------------------


def test_spares_that_die_are_no_failures_but_come_ever_later() -> None:
    world = with_spare(max_failures=1)
    pauses = []
    for death in range(1, 12):
        world.fail(world.spares()[0])
        decision = world.settle()
        assert (world.ids(), world.status().failures) == (["w1", "w2"], 0)
        assert world.status().standby_deaths == death
        pauses.append(0.0 if decision.wake_at is None else decision.wake_at - world.now_s)
        world.now_s += pauses[-1]
        world.settle()
        assert len(world.spares()) == 1
    assert pauses[:6] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert pauses[-1] == 60.0
    world.run_workers()  # one gets to the gate
    world.settle()
    assert world.status().standby_deaths == 0
    world.fail(world.spares()[0])
    world.settle()
    assert world.status().standby_deaths == 1


def test_a_joining_worker_that_dies_before_the_gate_is_no_failure() -> None:
    world = running(1, nodes=1, slots=2, max_failures=1)
    world.edit(np=2)
    for death in range(1, 6):
        world.settle()
        joining = world.ids()[1]
        world.record(joining, WorkerState.STARTING)
        world.fail(joining, log_tail="ImportError")
        world.settle()
        world.now_s += 100.0
        assert (world.status().failures, world.status().standby_deaths) == (0, death)
    assert world.status().phase is Phase.RUNNING


def test_the_pause_is_said() -> None:
    world = running(1, nodes=1, slots=2)
    world.edit(np=2)
    for _ in range(2):
        world.settle()
        world.fail(world.ids()[1])
    world.settle()
    assert world.ids() == ["w1"]
    assert world.status().reason.endswith("; 1 more after a pause, because 2 standbys in a row have died")


def test_below_the_minimum_nobody_is_held_back() -> None:
    world = running(2, nodes=1, slots=3, min_np=2)
    world.fail("w2")
    for _ in range(4):
        world.settle()
        assert len(world.ids()) == 2
        world.fail(world.ids()[1])
    assert (world.status().failures, world.status().standby_deaths) == (1, 3)


def test_a_worker_killed_with_its_generation_is_no_failure() -> None:
    world = running(2, nodes=1, slots=3, max_failures=1)
    for _ in range(3):
        victim = world.ids()[1]
        world.record(victim, WorkerState.EXITED, Outcome.ABORTED, -9)
        world.settle()
        assert f"{victim} was killed on a while it joined a generation" in world.plan().reason
        assert (world.status().failures, world.status().standby_deaths) == (0, 0)
        world.run_workers()


def test_a_worker_that_dies_in_the_world_is_a_failure_still() -> None:
    world = running(2, nodes=1, slots=3, max_failures=1)
    world.fail("w2")
    world.settle()
    world.run_workers()
    world.fail("w3")
    world.settle()
    assert world.status().phase is Phase.FAILED
