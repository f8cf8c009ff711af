"""The decision about jobs, as tables: phases, plans and counters."""

from dataclasses import replace

from job_world import CONFIG, World, running

from edl_collective.coord.job_spec import ChangeRule, EpochStep, Schedule, TimeStep
from edl_collective.coord.records import Phase, WorkerState
from jobserver.changing import Changing

# ---- the first plan ------------------------------------------------------------------------------------------------


def test_a_job_starts_when_its_minimum_fits() -> None:
    world = World()
    world.submit(min_np=3)
    assert world.settle().reason.endswith("with a lower min_np")
    assert world.status().phase is Phase.PENDING
    assert "min_np is 3 and 3 of them are missing" in world.status().reason
    world.join("a", 2)
    world.settle()
    assert "1 of them is missing" in world.status().reason
    assert world.jobs["j"].plan is None
    world.join("b", 2)
    world.settle()
    assert (world.status().phase, world.status().started_at) == (Phase.RUNNING, world.now_s)
    assert world.ids() == ["w1", "w2", "w3", "w4"]
    assert (world.plan().revision, world.plan().driver_node, world.plan().leader_epoch) == (1, "a", 7)


def test_an_elastic_job_runs_with_what_there_is_and_grows() -> None:
    world = World()
    world.join("a", 1)
    world.submit(np=3)
    world.settle()
    assert (world.ids(), world.status().reason) == (
        ["w1"],
        "1 worker: np 3 was asked for; 2 more when slots become free",
    )
    world.join("b", 4)
    world.settle()
    assert world.ids() == ["w1", "w2", "w3"]


def test_two_jobs_share_what_is_left_after_both_minimums() -> None:
    world = World()
    world.join("a", 4)
    world.submit("first", max_np=4)
    world.submit("second", max_np=4)
    world.settle()
    assert [len(world.ids(j)) for j in ("first", "second")] == [2, 2]


def test_a_new_job_gets_its_minimum_when_the_older_one_has_let_go() -> None:
    world = World()
    world.join("a", 2)
    world.submit("first", max_np=2)
    world.settle()
    world.run_workers("first")
    world.submit("second")
    world.settle()
    assert world.ids("first") == ["w1"]
    assert world.status("second").reason == "min_np is 1: waiting for slots whose workers are still ending"
    world.let_go("first")
    world.settle()
    assert world.plan("second").workers[0].slot == 1


# ---- resizes -------------------------------------------------------------------------------------------------------


def test_scale_up_and_down_keeps_the_oldest_where_they_are() -> None:
    world = running(2)
    before = world.plan().workers
    world.edit(np=4)
    world.settle()
    assert world.plan().workers[:2] == before
    assert world.plan().reason == "2 to 4 workers: np 4 was asked for"
    world.run_workers()
    world.edit(np=1)
    world.settle()
    assert world.plan().workers == before[:1]


def test_a_returning_worker_has_a_new_id_and_waits_for_the_slot() -> None:
    world = running(4)
    world.edit(np=2)
    world.settle()
    world.edit(np=4)
    world.settle()
    assert world.ids() == ["w1", "w2"]
    world.let_go()
    world.settle()
    assert world.ids() == ["w1", "w2", "w5", "w6"]


def test_a_schedule_by_epoch() -> None:
    schedule = Schedule(epochs=(EpochStep(0, 1), EpochStep(2, 2), EpochStep(4, 4)))
    world = running(1, schedule=schedule)
    world.edit(np=None)
    sizes = []
    for epoch in range(6):
        world.report(epoch=epoch)
        world.settle()
        sizes.append(len(world.ids()))
    assert sizes == [1, 1, 2, 2, 4, 4]


def test_the_changing_rule_waits_until_its_last_change_is_the_running_world() -> None:
    world = World()
    world.join("a", 4)
    world.submit(max_np=3, schedule=Schedule(change=ChangeRule(10.0, 1, 2)))
    sizes = []
    for _ in range(5):
        world.settle()
        sizes.append(len(world.ids()))
        world.now_s += 1000.0  # however long its workers take to start, no change comes in between
        assert world.settle().wake_at is None
        assert len(world.ids()) == sizes[-1]
        world.let_go()
        world.run_workers()
        assert world.settle().wake_at == world.now_s + 10.0
        assert world.status().changed_at == world.now_s
        world.now_s += 9.0
        world.settle()
        assert len(world.ids()) == sizes[-1]
        world.now_s += 1.0
    assert sizes == [3, 1, 2, 1, 2]


def test_the_changing_rule_goes_on_where_slots_are_fewer_than_it_wants() -> None:
    world = World()
    world.join("a", 1)
    world.submit(max_np=2, schedule=Schedule(change=ChangeRule(10.0, 1, 1)))
    world.settle()
    world.run_workers()
    for change in range(4):
        world.settle()
        assert (world.status().changes, world.ids()) == (change, ["w1"])
        world.now_s += 10.0


def test_the_changing_rule_waits_for_the_replacement_of_a_dead_worker() -> None:
    world = World()
    world.join("a", 2)
    world.submit(max_np=2, schedule=Schedule(change=ChangeRule(10.0, 1, 1)))
    world.settle()
    world.run_workers()
    world.settle()
    world.fail("w2")
    world.now_s += 20.0
    world.settle()
    assert world.ids() == ["w1", "w3"]
    world.run_workers()
    world.settle()
    assert world.ids() == ["w1"]


def test_the_changing_script_is_written_into_new_jobs_that_leave_their_size_open() -> None:
    world = World(replace(CONFIG, changing=Changing(ChangeRule(900.0, 1, 2), 3)))
    world.join("a", 8)
    world.submit("open", max_np=1024)
    world.submit("closed", np=1)
    world.settle()
    spec = world.jobs["open"].spec.value
    assert spec.schedule is not None
    assert (spec.schedule.change, spec.max_np) == (ChangeRule(900.0, 1, 2), 3)
    assert [len(world.ids(j)) for j in ("open", "closed")] == [3, 1]
    world.run_workers("open")
    assert world.settle().wake_at == world.now_s + 900
    world.now_s += 900
    world.settle()
    assert world.ids("open") == ["w1"]
    assert world.jobs["closed"].spec.value.schedule is None


def test_a_schedule_by_time_wakes_itself() -> None:
    world = World()
    world.join("a", 4)
    world.submit(schedule=Schedule(times=(TimeStep(0, 1), TimeStep(60, 3))))
    started = world.now_s
    assert world.settle().wake_at == started + 60
    world.now_s = started + 60
    world.settle()
    assert len(world.ids()) == 3


def test_no_resize_near_the_end_but_losses_are_replaced() -> None:
    world = running(2, nodes=3)
    world.report(near_end=True)
    world.edit(np=4)
    world.settle()
    assert world.ids() == ["w1", "w2"]
    assert "near the end" in world.status().reason
    world.fail("w2")
    world.settle()
    assert world.ids() == ["w1", "w3"]


def test_near_the_end_nothing_is_given_to_a_new_job() -> None:
    world = running(4)
    world.report(near_end=True)
    world.submit("second")
    world.settle()
    assert len(world.ids()) == 4
    assert world.status("second").phase is Phase.PENDING


def test_draining_nodes_are_left_and_get_nothing() -> None:
    world = running(2, nodes=2)
    world.drain("a")
    world.settle()
    assert [w.node for w in world.plan().workers] == ["a", "b"]  # one hands the training state over
    world.let_go()
    world.run_workers()
    world.settle()
    assert [w.node for w in world.plan().workers] == ["b", "b"]
    assert world.plan().driver_node == "b"
    assert "w1 leaves a, which drains" in world.plan().reason
    assert world.status().failures == 0


# ---- losses --------------------------------------------------------------------------------------------------------


def test_a_failed_worker_is_replaced_in_the_free_slot() -> None:
    world = running(2, nodes=1)
    world.fail("w2")
    world.settle()
    assert world.ids() == ["w1", "w3"]
    assert world.plan().workers[1].slot == 1
    assert world.plan().reason.startswith("w2 failed on a (killed by signal 9); replaced, still 2 workers")
    assert (world.status().failures, world.status().attempt) == (1, 1)


def test_a_lost_node_counts_no_failure_and_moves_the_driver() -> None:
    world = running(4, nodes=3)
    world.lose("a")
    world.settle()
    assert {w.node for w in world.plan().workers} == {"b", "c"}
    assert (world.plan().driver_node, world.status().failures) == ("b", 0)
    assert "w1 was lost with node a" in world.plan().reason


def test_a_restarted_jobclient_is_another_life_of_the_node() -> None:
    world = running(2, nodes=1)
    world.join("a", 2)
    world.settle()
    assert world.ids() == ["w3", "w4"]
    assert (world.status().attempt, world.status().restarts, world.status().failures) == (2, 1, 0)


def test_a_worker_without_a_record_waits_for_its_jobclient() -> None:
    world = World()
    world.join("a")
    world.submit(np=2)
    world.settle()
    world.join("a")  # restarted before it started anything
    assert world.settle().actions == ()
    assert world.ids() == ["w1", "w2"]


def test_the_driver_stays_while_its_node_lives() -> None:
    world = running(2, nodes=1)
    world.join("b", 4)
    world.edit(np=4)
    world.settle()
    world.fail("w1")
    world.fail("w2")
    world.settle()
    assert world.plan().driver_node == "a"


def test_all_workers_dead_is_a_new_attempt_a_bounded_number_of_times() -> None:
    world = running(2, max_restarts=2)
    for attempt in (2, 3):
        for worker in world.ids():
            world.fail(worker)
        world.settle()
        assert (world.status().attempt, len(world.ids())) == (attempt, 2)
        world.run_workers()
    for worker in world.ids():
        world.fail(worker, log_tail="ImportError: no module named torc")
    world.settle()
    assert (world.status().phase, world.ids(), world.plan().driver_node) == (Phase.FAILED, [], None)
    assert "max_restarts is 2" in world.status().reason
    assert (world.status().attempt, "\n" in world.plan().reason) == (3, False)
    assert world.status().reason.endswith("ImportError: no module named torc")


def test_the_last_member_of_the_world_takes_the_state_with_it() -> None:
    """w1 dies, w3 starts in its place, then w2 dies: nobody has the training state, though w3 lives."""
    world = running(2)
    world.fail("w1")
    world.settle()
    world.record("w3", WorkerState.STARTING)
    world.fail("w2")
    world.settle()
    assert (world.status().attempt, world.status().restarts) == (2, 1)
    assert world.ids() == ["w3", "w4"]


def test_failures_before_any_world_are_bounded() -> None:
    world = World()
    world.join("a", 4)
    world.submit(np=2, max_failures=3)
    world.settle()
    tries = 0
    while not world.status().phase.terminal:
        tries += 1
        world.fail(world.ids()[0], log_tail="SyntaxError")
        world.settle()
        assert tries < 20
    assert tries == 4
    assert "max_failures is 3" in world.status().reason
    assert "SyntaxError" in world.status().reason


def test_a_completed_epoch_clears_the_counters() -> None:
    world = running(2, max_failures=1)
    for epoch in range(1, 5):
        world.fail(world.ids()[1])
        world.settle()
        world.run_workers()
        world.report(epoch=epoch)
        world.settle()
        assert (world.status().failures, world.status().epoch_seen) == (0, epoch)
    assert world.status().phase is Phase.RUNNING
