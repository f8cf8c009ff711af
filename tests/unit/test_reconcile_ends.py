"""The decision about jobs, as tables: holding, finishing, stopping, what cannot be read, and rubbish."""

from dataclasses import replace

import msgspec
import pytest
from job_world import CONFIG, World, running

from edl_collective.coord.records import (
    Event,
    JobKind,
    Member,
    Phase,
    Rendezvous,
    WorkerState,
    encode,
)
from jobserver.job_state import TRANSITIONS
from jobserver.reconcile import ReconcileConfig
from jobserver.snapshot import Slot

# ---- below the minimum ---------------------------------------------------------------------------------------------


def test_below_the_minimum_it_holds_then_recovers() -> None:
    world = running(2, min_np=2)
    world.lose("b")
    world.nodes["a"] = msgspec.structs.replace(world.nodes["a"], slots=1)
    decision = world.settle()
    assert (world.status().phase, world.ids()) == (Phase.HOLDING, ["w1"])
    assert decision.wake_at == world.now_s + 600
    world.now_s += 100
    world.settle()
    world.join("c")
    world.settle()
    assert (world.status().phase, len(world.ids())) == (Phase.RUNNING, 2)


def test_below_the_minimum_for_too_long_it_fails() -> None:
    world = running(2, min_np=2)
    world.lose("b")
    world.lose("a")
    wake_at = world.settle().wake_at
    assert wake_at is not None
    world.now_s = wake_at
    assert world.settle().wake_at is None
    assert (world.status().phase, world.ids()) == (Phase.FAILED, [])
    assert "hold_timeout_s 600" in world.status().reason


# ---- the end -------------------------------------------------------------------------------------------------------


def test_finishing_waits_for_the_others_and_replaces_nobody() -> None:
    world = running(2)
    world.finish("w1")
    assert world.settle().wake_at == world.now_s + 60
    world.join("c", 8)
    world.edit(np=4)
    world.settle()
    assert (world.status().phase, world.ids()) == (Phase.FINISHING, ["w1", "w2"])
    world.finish("w2")
    world.settle()
    assert (world.status().phase, world.ids()) == (Phase.SUCCEEDED, [])


def test_a_worker_that_never_joined_is_not_waited_for() -> None:
    world = running(2)
    world.edit(np=3)
    world.settle()
    for worker in ("w1", "w2"):
        world.finish(worker)
    world.settle()
    assert (world.status().phase, world.status().reason) == (Phase.SUCCEEDED, "training finished")


def test_the_slot_of_a_finished_worker_is_given_when_the_plan_lets_go() -> None:
    world = running(2, nodes=1, min_np=2)
    world.submit("second")
    world.settle()
    world.finish("w1")
    world.settle()
    assert world.status("second").phase is Phase.PENDING
    world.finish("w2")
    world.settle()
    assert len(world.ids("second")) == 2


def test_a_worker_that_never_ends_is_stopped_after_the_timeout() -> None:
    world = running(2)
    world.finish("w1")
    world.settle()
    world.now_s += 60
    world.settle()
    assert (world.status().phase, world.ids()) == (Phase.SUCCEEDED, [])
    assert "w2 did not end" in world.status().reason


def test_without_rank_0_training_is_not_finished() -> None:
    world = running(2)
    world.finish("w2")
    world.settle()
    world.fail("w1")
    world.settle()
    assert (world.status().phase, world.ids(), world.status().attempt) == (Phase.RUNNING, ["w3", "w4"], 2)
    assert (world.status().restarts, world.status().failures) == (1, 1)


def test_a_hung_rank_0_keeps_its_slot_until_it_ended() -> None:
    world = running(2, nodes=1)
    world.finish("w2")
    world.settle()
    world.now_s += 300
    world.settle()
    assert "rank 0 (w1) did not finish within save_timeout_s 300: attempt 2" in world.plan().reason
    assert [(w.worker, w.slot) for w in world.plan().workers] == [("w3", 1)]
    world.let_go()
    world.settle()
    assert [(w.worker, w.slot) for w in world.plan().workers] == [("w3", 1), ("w4", 0)]


def test_rank_0_is_not_cut_short_while_it_saves() -> None:
    world = running(3)
    world.finish("w2")
    decision = world.settle()
    assert decision.wake_at == world.now_s + 300
    assert "waiting for w1 (rank 0), which saves, for at most save_timeout_s 300" in world.status().reason
    world.now_s += 299
    world.settle()
    assert (world.status().phase, world.ids()) == (Phase.FINISHING, ["w1", "w2", "w3"])
    world.finish("w1")
    assert world.settle().wake_at == world.now_s + 60, "the others have their time from here on"
    assert world.ids() == ["w1", "w2", "w3"]
    world.now_s += 60
    world.settle()
    assert (world.status().phase, world.status().attempt, world.ids()) == (Phase.SUCCEEDED, 1, [])
    assert "w3 did not end within finish_timeout_s 60" in world.status().reason


def test_a_new_attempt_forgets_that_rank_0_had_finished_before() -> None:
    world = running(3)
    world.finish("w1")
    world.settle()
    assert world.status().saved_at == world.now_s
    members = (Member("w2", "a", 0, 0, 1, 0, 1), Member("w3", "b", 1, 0, 1, 0, 1))
    world.jobs["j"] = replace(world.jobs["j"], rendezvous=Rendezvous(generation=9, epoch=1, members=members))
    world.fail("w2")
    world.finish("w3")
    world.settle()
    world.run_workers()
    world.settle()
    assert (world.status().phase, world.status().attempt, world.status().saved_at) == (Phase.RUNNING, 2, None)
    world.now_s += 1000
    world.finish(world.ids()[0])
    assert world.settle().wake_at == world.now_s + 60


def test_stop_waits_for_the_processes() -> None:
    world = running(2)
    driver_node = world.plan().driver_node
    world.edit(stopped=True)
    world.settle()
    assert (world.status().phase, world.ids()) == (Phase.STOPPING, [])
    assert world.plan().driver_node == driver_node is not None, "it is the driver that calls the workers to the gate"
    world.let_go()
    world.settle()
    assert (world.status().phase, world.plan().driver_node) == (Phase.STOPPED, None)
    world.join("z", 9)
    assert world.settle().actions == ()


def test_stop_before_the_start() -> None:
    world = World()
    world.submit(stopped=True)
    world.settle()
    assert world.status().phase is Phase.STOPPED


def test_an_external_job_has_slots_but_no_driver() -> None:
    world = World()
    world.join("a", 1)
    world.join("b", 1)
    world.submit(kind=JobKind.EXTERNAL, max_np=2)
    world.settle()
    assert (len(world.ids()), world.plan().driver_node) == (2, None)
    world.lose("b")
    world.settle()
    assert (world.ids(), world.status().attempt) == (["w1"], 1)
    world.edit(stopped=True)
    world.settle()
    assert world.status().phase is Phase.STOPPED


def test_the_reason_of_a_decision_tells_of_open_jobs_and_no_logs() -> None:
    world = running(2, nodes=1, max_failures=0)
    world.submit("second")
    assert world.settle().reason.startswith("j: running, ")
    world.fail(world.ids()[0], log_tail="a secret")
    assert world.decide().reason.startswith("second: ")
    world.settle()
    assert "a secret" in world.status().reason
    world.let_go()
    assert world.settle().reason.startswith("second: running, ")
    world.edit("second", stopped=True)
    assert world.settle().reason == "no job that has not ended"


# ---- what cannot be read, and rubbish ------------------------------------------------------------------------------


def test_an_unreadable_node_loses_nobody_and_gets_nobody() -> None:
    world = running(2, nodes=1)
    del world.nodes["a"]
    world.unreadable_nodes = frozenset({"a"})
    world.edit(np=4)
    world.settle()
    assert world.ids() == ["w1", "w2"]
    world.join("b")
    world.settle()
    assert [w.node for w in world.plan().workers] == ["a", "a", "b", "b"]


def test_an_unreadable_job_keeps_its_slots() -> None:
    world = World()
    world.join("a", 2)
    world.unreadable_jobs = {"broken": frozenset({Slot("a", 0)})}
    world.submit()
    world.settle()
    assert [w.slot for w in world.plan().workers] == [1]


def test_a_lost_status_does_not_start_the_job_again() -> None:
    world = running(2)
    world.jobs["j"] = replace(world.jobs["j"], status=None)
    world.settle()
    assert (world.ids(), world.status().phase) == (["w1", "w2"], Phase.RUNNING)


def test_old_workers_and_events_are_forgotten() -> None:
    world = running(1)
    world.config = replace(CONFIG, max_ended_workers=3, max_events=5, max_deletions=4)
    world.edit(max_failures=1000, max_restarts=1000)
    for _ in range(10):
        world.fail(world.ids()[0])
        world.settle()
        assert len(world.decide().actions) <= 5
    ended = [at for at in world.jobs["j"].workers.values() if at.value.state is WorkerState.EXITED]
    assert len(ended) == 3
    assert len(world.jobs["j"].events) == 5
    texts = [msgspec.json.decode(e.data, type=Event).text for e in world.jobs["j"].events]
    assert any("w10 failed" in text for text in texts)


def test_the_records_of_256_workers_stay_within_the_bound() -> None:
    names = [f"{i:03d}-{'n' * 59}" for i in range(34)]
    world = World()
    for name in names:
        world.join(name, 8)
    world.submit(min_np=16, max_np=256, max_failures=1000)
    world.settle()
    world.run_workers()
    assert len(world.ids()) == 256
    for worker in world.ids()[:128]:
        world.fail(worker, log_tail="x" * 10_000)
    world.settle()
    assert "; and 120 more; replaced, still 256 workers" in world.plan().reason
    assert len(encode(world.plan())) < 24 * 1024
    world.edit(max_failures=1)
    world.fail(world.ids()[0], log_tail="x" * 10_000)
    world.settle()
    assert (world.status().phase, len(encode(world.status())) < 4096) == (Phase.FAILED, True)


def test_every_phase_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert all(not TRANSITIONS[phase] for phase in Phase if phase.terminal)


@pytest.mark.parametrize(
    "field", ["finish_timeout_s", "save_timeout_s", "max_events", "max_ended_workers", "max_deletions"]
)
def test_a_bad_configuration_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        replace(ReconcileConfig(), **{field: 0})  # type: ignore[arg-type]
