"""The decision about nodes that drain: nobody takes the last copy of the training state along."""

from job_world import World, running

from edl_collective.coord.records import Phase


def test_the_only_node_of_a_job_hands_the_state_over_before_it_is_left() -> None:
    world = running(3, nodes=1, slots=3)
    world.join("b", 3)
    world.drain("a")
    world.settle()
    assert [(w.worker, w.node) for w in world.plan().workers] == [("w1", "a"), ("w4", "b"), ("w5", "b")]
    assert "w2 leaves a, which drains; w3 leaves a, which drains; w1 stays on a, which drains" in world.plan().reason
    assert world.plan().driver_node == "b"
    world.let_go()
    world.run_workers()
    world.settle()
    assert [(w.worker, w.node) for w in world.plan().workers] == [("w4", "b"), ("w5", "b"), ("w6", "b")]
    assert (world.status().attempt, world.status().failures) == (1, 0)


def test_it_stays_until_the_others_are_enough_to_train() -> None:
    world = running(3, nodes=1, slots=3, min_np=2)
    world.join("b", 3)
    world.drain("a")
    world.settle()
    assert world.ids() == ["w1", "w4", "w5"]
    world.form("w1", "w4")
    world.settle()
    assert world.ids() == ["w1", "w4", "w5"]
    world.form("w1", "w4", "w5")
    world.settle()
    assert world.ids() == ["w4", "w5", "w6"]


def test_it_goes_where_others_cannot_become_enough() -> None:
    world = running(3, nodes=1, slots=3, min_np=2)
    world.join("b", 1)
    world.drain("a")
    world.settle()
    assert world.ids() == ["w1", "w4"]
    world.form("w1", "w4")
    world.settle()
    assert (world.ids(), world.status().phase) == (["w4"], Phase.HOLDING)


def test_rank_0_hands_over_if_it_lives() -> None:
    world = running(2, nodes=1)
    world.form("w2", "w1")
    world.join("b", 2)
    world.drain("a")
    world.settle()
    assert world.ids() == ["w2", "w3"]


def test_a_job_of_one_worker_has_two_while_it_moves() -> None:
    world = running(1, nodes=1, max_np=1)
    world.join("b", 1)
    world.drain("a")
    world.settle()
    assert world.ids() == ["w1", "w2"]
    world.run_workers()
    world.settle()
    assert world.ids() == ["w2"]


def test_a_warm_spare_takes_the_state_over() -> None:
    world = running(2, nodes=2, spares=1)
    world.run_workers()
    assert [w.node for w in world.plan().spares] == ["b"]
    world.drain("a")
    world.settle()
    assert world.ids() == ["w1", "w3"]
    world.run_workers()
    world.settle()
    assert world.ids() == ["w3", "w4"]


def test_a_warm_spare_without_a_place_goes_on_waiting_while_the_state_is_handed_over() -> None:
    world = running(2, nodes=1, slots=2, spares=2)
    world.join("b", 2)
    world.settle()
    world.run_workers()
    assert world.spares() == ["w3", "w4"]
    world.drain("a")
    world.settle()
    assert (world.ids(), world.spares()) == (["w1", "w3"], ["w4"])
    assert "w3 stood by and takes a place" in world.plan().reason
    assert "w4" not in world.plan().reason
    world.form("w1", "w3")
    world.settle()
    assert (world.ids(), world.spares()) == (["w3", "w4"], [])


def test_nobody_stays_where_nobody_can_come() -> None:
    world = running(2, nodes=1)
    world.drain("a")
    world.settle()
    assert (world.ids(), world.status().phase) == ([], Phase.HOLDING)


def test_nobody_stays_where_others_have_the_state() -> None:
    world = running(4, nodes=2)
    world.drain("a")
    world.settle()
    assert world.ids() == ["w3", "w4"]


def test_two_nodes_that_drain_at_once_hand_over_to_a_third() -> None:
    world = World()
    for node in "ab":
        world.join(node, 1)
    world.submit(np=2, max_np=2)
    world.settle()
    world.run_workers()
    world.join("c", 2)
    world.drain("a")
    world.drain("b")
    world.settle()
    assert world.ids() == ["w1", "w3"]


def test_a_cordoned_node_keeps_who_it_has_and_gets_nobody() -> None:
    world = running(2, nodes=1, slots=4, max_np=4)
    world.cordon("a")
    world.edit(np=4)
    world.settle()
    assert world.ids() == ["w1", "w2"]
    world.join("b", 1)
    world.settle()
    assert [(w.worker, w.node) for w in world.plan().workers] == [("w1", "a"), ("w2", "a"), ("w3", "b")]
    world.run_workers()
    world.fail("w2")
    world.settle()
    assert [(w.worker, w.node) for w in world.plan().workers] == [("w1", "a"), ("w3", "b")]
    world.cordon("a", cordoned=False)
    world.settle()
    assert len(world.ids()) == 4


def test_a_new_job_waits_beside_a_cordoned_node_and_its_reason_counts_no_slots_there() -> None:
    world = World()
    world.join("a", 4)
    world.cordon("a")
    world.submit()
    world.settle()
    assert world.status().phase is Phase.PENDING
    assert "0 slots on 0 nodes" in world.status().reason


def test_nobody_gives_up_a_slot_of_a_cordoned_node_for_others_who_could_not_have_it() -> None:
    world = running(4, nodes=1, slots=4, max_np=4)
    world.cordon("a")
    world.submit("equal", max_np=4)
    world.submit("higher", priority=9, max_np=4, min_np=2)
    world.settle()
    assert world.ids() == ["w1", "w2", "w3", "w4"]
    assert {world.status(name).phase for name in ("equal", "higher")} == {Phase.PENDING}
    world.join("b", 2)
    world.settle()
    assert (len(world.ids()), len(world.ids("higher"))) == (4, 2)
    assert {w.node for w in world.plan("higher").workers} == {"b"}


def test_who_shrinks_leaves_the_open_nodes_first_because_others_can_use_them() -> None:
    world = running(4, nodes=2, slots=2, max_np=4)
    world.cordon("b")
    world.submit("higher", priority=9, min_np=2, max_np=2)
    world.settle()
    assert {w.node for w in world.plan().workers} == {"b"}
    world.let_go()
    world.settle()
    assert {w.node for w in world.plan("higher").workers} == {"a"}
    assert {w.node for w in world.plan().workers} == {"b"}


def test_a_cordoned_job_that_wants_less_shrinks() -> None:
    world = running(4, nodes=1, slots=4, max_np=4)
    world.cordon("a")
    world.edit(np=1)
    world.settle()
    assert world.ids() == ["w1"]


def test_a_spare_on_a_cordoned_node_takes_the_place_of_the_lost() -> None:
    world = running(2, nodes=2, slots=2, spares=1, max_np=2)
    world.run_workers()
    spare = world.plan().spares[0]
    world.cordon(spare.node)
    world.settle()
    assert world.plan().spares == (spare,)
    world.fail("w2")
    world.settle()
    assert spare in world.plan().workers
