"""What a JobClient does next: tables. What comes of it in the end: test_decide_histories.py."""

from dataclasses import replace as with_
from typing import Any

import pytest
from decide_parts import EMPTY, ENDED, NODE, OTHER, PLANNED, SPEC, STATUS, W1, local, plan, record, view
from msgspec.structs import replace

from edl_collective.coord.records import (
    JobKind,
    JobStatus,
    Outcome,
    Phase,
    PlannedWorker,
    Rendezvous,
    WorkerState,
)
from edl_collective.driver.world import rank
from jobclient.decide import (
    FIRST_DRIVER_PAUSE_S,
    HEALTHY_DRIVER_S,
    LONGEST_DRIVER_PAUSE_S,
    AskBack,
    GiveUp,
    JobView,
    LetLeave,
    LocalDriver,
    LocalWorker,
    Missing,
    StartDriver,
    StartWorker,
    StopDriver,
    StopWorker,
    View,
    answerable,
    decide,
    driver_died,
    outcome,
)


@pytest.mark.parametrize(
    ("given_view", "kinds"),
    [
        pytest.param(view(PLANNED), [StartWorker], id="planned here and never run"),
        pytest.param(view(PLANNED, local()), [], id="runs already"),
        pytest.param(view(PLANNED, local("w0")), [LetLeave], id="its slot is still taken"),
        pytest.param(view(PLANNED, local("w0", exited=True)), [], id="its slot is being cleared"),
        pytest.param(
            view(with_(PLANNED, workers={"w1": record("w1", WorkerState.EXITED)})), [], id="an id runs only once"
        ),
        pytest.param(
            view(with_(PLANNED, workers={"w1": record("w1", WorkerState.RUNNING, "life-1")})),
            [],
            id="belonged to an earlier life of this node",
        ),
        pytest.param(
            view(with_(PLANNED, workers={"w3": record("w3", WorkerState.RUNNING, "life-1", "b")})),
            [StartWorker],
            id="other nodes' workers are theirs",
        ),
        pytest.param(
            view(JobView(SPEC, plan(PlannedWorker("w1", "a", 2)), STATUS)), [], id="a slot that this node does not have"
        ),
        pytest.param(view(with_(PLANNED, spec=replace(SPEC, kind=JobKind.EXTERNAL))), [], id="horovodrun launches"),
        pytest.param(view(with_(PLANNED, spec=None)), [], id="no spec, no start"),
        pytest.param(view(ENDED), [], id="ended, no start"),
        pytest.param(view(PLANNED, closing=True), [], id="closing, no start"),
        pytest.param(view(EMPTY, local()), [LetLeave], id="not planned any more"),
        pytest.param(view(EMPTY, local(leave_by_s=101.0)), [], id="has time to leave"),
        pytest.param(view(EMPTY, local(leave_by_s=100.0)), [StopWorker], id="did not leave in time"),
        pytest.param(view(EMPTY, local(cold=True)), [StopWorker], id="not planned and in no world"),
        pytest.param(view(EMPTY, local(stopping=True)), [], id="the ladder runs"),
        pytest.param(view(EMPTY, local(exited=True)), [], id="has left"),
        pytest.param(view(with_(PLANNED, plan=None), local()), [], id="a plan that cannot be read stops nobody"),
        pytest.param(view(ENDED, local()), [StopWorker], id="job ended"),
        pytest.param(view(None, local()), [StopWorker], id="job removed"),
        pytest.param(view(PLANNED, local(submitted_at=-1.0)), [StopWorker], id="of an earlier job of that name"),
        pytest.param(view(PLANNED, local(submitted_at=-1.0, exited=True)), [], id="its name is not free yet"),
        pytest.param(view(PLANNED, local(), closing=True), [LetLeave], id="JobClient ends"),
        pytest.param(view(EMPTY, local(leave_by_s=101.0), closing=True), [], id="closing, has time to leave"),
        pytest.param(view(PLANNED, local(leave_by_s=100.0), closing=True), [StopWorker], id="closing, did not leave"),
        pytest.param(view(PLANNED, local(cold=True), closing=True), [StopWorker], id="closing, in no world"),
        pytest.param(view(with_(PLANNED, plan=None), local(), closing=True), [LetLeave], id="closing without a plan"),
    ],
)
def test_workers(given_view: View, kinds: list[type]) -> None:
    decision = decide(given_view, 100.0)
    assert [type(action) for action in decision.actions] == kinds
    assert all(not isinstance(action, AskBack) and action.reason for action in decision.actions)


def driver(**fields: Any) -> LocalDriver:
    return LocalDriver("j", **{"running": True, **fields})


HERE = JobView(SPEC, plan(OTHER, driver="a"), STATUS)


@pytest.mark.parametrize(
    ("given_view", "kinds"),
    [
        pytest.param(view(HERE), [StartDriver], id="planned here"),
        pytest.param(view(HERE, drivers=(driver(),)), [], id="runs"),
        pytest.param(view(HERE, drivers=(driver(running=False, not_before_s=100.0),)), [StartDriver], id="again"),
        pytest.param(view(HERE, drivers=(driver(running=False, not_before_s=100.1),)), [], id="not yet again"),
        pytest.param(view(EMPTY, drivers=(driver(),)), [StopDriver], id="planned elsewhere"),
        pytest.param(view(EMPTY, drivers=(driver(stopping=True),)), [], id="is being stopped"),
        pytest.param(view(None, drivers=(driver(),)), [StopDriver], id="job removed"),
        pytest.param(view(with_(HERE, status=ENDED.status), drivers=(driver(),)), [StopDriver], id="job ended"),
        pytest.param(view(HERE, closing=True), [], id="closing, no start"),
        pytest.param(view(HERE, drivers=(driver(),), closing=True), [StopDriver], id="JobClient ends"),
        pytest.param(
            view(HERE, local(stopping=True), drivers=(driver(),), closing=True), [], id="outlives its workers"
        ),
        pytest.param(view(with_(HERE, spec=replace(SPEC, kind=JobKind.EXTERNAL))), [], id="external has none"),
    ],
)
def test_driver(given_view: View, kinds: list[type]) -> None:
    assert [type(action) for action in decide(given_view, 100.0).actions] == kinds


def test_wakes_for_the_first_deadline() -> None:
    dead = driver(running=False, not_before_s=103.0)
    both = View(node=NODE, jobs={"j": HERE}, workers=(local(leave_by_s=110.0),), drivers=(dead,))
    assert decide(both, 100.0).wake_at_s == 103.0
    assert decide(view(EMPTY, local()), 100.0).wake_at_s == 130.0
    assert decide(view(EMPTY, local(leave_by_s=110.0)), 100.0).wake_at_s == 110.0
    assert decide(view(PLANNED, local()), 100.0).wake_at_s is None


def test_a_node_answers_for_each_world_that_has_a_member_on_it() -> None:
    here = Rendezvous(generation=1, epoch=1, members=rank([("w1", "a"), ("w3", "b")]))
    elsewhere = Rendezvous(generation=1, epoch=1, members=rank([("w3", "b")]))
    ended = JobStatus(phase=Phase.FAILED, reason="r", since=0.0)
    jobs = {
        "came_back": JobView(spec=SPEC, plan=plan(OTHER), rendezvous=here),
        "elsewhere": JobView(spec=SPEC, plan=plan(OTHER), rendezvous=elsewhere),
        "ended": JobView(spec=SPEC, plan=plan(OTHER), status=ended, rendezvous=here),
        "none_yet": JobView(spec=SPEC, plan=plan(W1)),
    }
    assert answerable(View(node=NODE, jobs=jobs)) == ("came_back",)
    assert answerable(View(node=NODE, jobs=jobs, closing=True)) == ()


def test_two_plans_for_one_slot_start_one_worker() -> None:
    two = View(node=NODE, jobs={"j": PLANNED, "k": JobView(replace(SPEC, job="k"), plan(W1), STATUS)})
    assert [action.job for action in decide(two, 100.0).actions] == ["j"]


def test_a_driver_that_keeps_dying_is_started_ever_more_slowly() -> None:
    now = driver(running=True)
    pauses = []
    for _ in range(10):
        now = driver_died(now, lived_s=1.0, now_s=50.0)
        pauses.append(now.not_before_s - 50.0)
    assert pauses[:2] == pytest.approx([0.0, FIRST_DRIVER_PAUSE_S])
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_DRIVER_PAUSE_S
    after_health = driver_died(now, lived_s=HEALTHY_DRIVER_S, now_s=50.0)
    assert after_health.not_before_s == 50.0


def test_the_driver_of_an_earlier_job_of_that_name_makes_place() -> None:
    here = JobView(SPEC, plan(driver="a"), STATUS)
    before = driver(running=True, submitted_at=-1.0)
    (stop,) = decide(view(here, drivers=(before,)), 100.0).actions
    assert isinstance(stop, StopDriver)
    dead = driver(running=False, submitted_at=-1.0, deaths=7, not_before_s=200.0)
    (start,) = decide(view(here, drivers=(dead,)), 100.0).actions
    assert isinstance(start, StartDriver), "how often another died delays nothing"
    assert driver_died(before, lived_s=1.0, now_s=50.0).submitted_at == before.submitted_at


# ---- those who hang, and drains -------------------------------------------------------------------------------------


HURRIED = replace(SPEC, warm_timeout_s=60.0, return_timeout_s=5.0, env={"HOROVOD_GLOO_TIMEOUT_SECONDS": "20"})
WATCHED = with_(PLANNED, spec=HURRIED)


def missing(asked_s: float = 100.0, **fields: float | None) -> LocalWorker:
    return local(missing=Missing(asked_s, **{"silent_since_s": None, **fields}))


@pytest.mark.parametrize(
    ("worker", "kinds", "wake_at_s"),
    [
        pytest.param(local(cold=True), [], None, id="not begun yet"),
        pytest.param(local(cold=True, started_s=50.0), [], 110.0, id="getting warm"),
        pytest.param(local(cold=True, started_s=40.0), [GiveUp], None, id="does not get warm"),
        pytest.param(local(started_s=0.0), [], None, id="is warm"),
        pytest.param(local(cold=True, started_s=0.0, stopping=True), [], None, id="is being stopped"),
        pytest.param(missing(), [], 101.0, id="has answered, is asked again soon"),
        pytest.param(missing(98.9), [AskBack], None, id="is asked again"),
        pytest.param(missing(silent_since_s=99.5), [], 101.0, id="has not answered yet"),
        pytest.param(missing(silent_since_s=95.0), [GiveUp], None, id="is silent"),
        pytest.param(missing(99.9, inside_since_s=75.1), [], 100.1, id="waits for gloo"),
        pytest.param(missing(99.9, inside_since_s=75.0), [GiveUp], None, id="hangs in Horovod"),
        pytest.param(missing(98.0, inside_since_s=None), [AskBack], None, id="is busy, which it may be for ever"),
    ],
)
def test_who_hangs_is_given_up(worker: LocalWorker, kinds: list[type], wake_at_s: float | None) -> None:
    decision = decide(view(WATCHED, worker), 100.0)
    assert [type(action) for action in decision.actions] == kinds
    if wake_at_s is not None:
        assert decision.wake_at_s == pytest.approx(wake_at_s)
    for action in decision.actions:
        if isinstance(action, GiveUp):
            assert "timeout_s" in action.reason


def test_a_spare_starts_like_any_other() -> None:
    spare = JobView(SPEC, replace(plan(OTHER), spares=(W1,)), STATUS)
    (start,) = decide(view(spare), 100.0).actions
    assert isinstance(start, StartWorker)
    assert start.planned == W1
    assert decide(view(spare, local()), 100.0).actions == ()


@pytest.mark.parametrize(
    ("given_view", "kinds"),
    [
        pytest.param(view(PLANNED, drained=True), [], id="a drained node starts nothing"),
        pytest.param(view(PLANNED, local(), drained=True), [], id="waits for the plan that lets it leave"),
        pytest.param(view(EMPTY, local(), drained=True, leave_by_s=160.0), [LetLeave], id="leaves by the deadline"),
        pytest.param(view(EMPTY, local(leave_by_s=160.0), drained=True, leave_by_s=160.0), [], id="has time"),
        pytest.param(view(PLANNED, local(), drained=True, leave_by_s=100.0), [StopWorker], id="nobody planned it away"),
        pytest.param(
            view(EMPTY, local(leave_by_s=100.0), drained=True, leave_by_s=100.0), [StopWorker], id="did not leave"
        ),
        pytest.param(view(PLANNED, local(), leave_by_s=105.0, closing=True), [LetLeave], id="--drain-timeout"),
        pytest.param(
            view(PLANNED, local(), leave_by_s=100.0, closing=True), [StopWorker], id="--drain-timeout is over"
        ),
    ],
)
def test_drained(given_view: View, kinds: list[type]) -> None:
    decision = decide(given_view, 100.0)
    assert [type(action) for action in decision.actions] == kinds
    if given_view.leave_by_s is not None and StopWorker not in kinds:
        assert decision.wake_at_s == given_view.leave_by_s
    for action in decision.actions:
        assert not isinstance(action, LetLeave) or action.leave_by_s == given_view.leave_by_s


def test_a_worker_killed_for_the_death_of_another_was_aborted() -> None:
    for told, expected in ((False, Outcome.ABORTED), (True, Outcome.LEFT)):
        assert outcome(-9, said_finished=False, told_to_leave=told, aborted=True) is expected


@pytest.mark.parametrize(
    ("code", "finished", "told", "expected"),
    [
        (0, True, False, Outcome.FINISHED),
        (0, False, False, Outcome.FINISHED),
        (0, True, True, Outcome.FINISHED),
        (0, False, True, Outcome.LEFT),
        (-15, False, True, Outcome.LEFT),
        (1, True, False, Outcome.FAILED),
        (1, False, False, Outcome.FAILED),
        (-9, False, False, Outcome.FAILED),
    ],
)
def test_outcome(code: int, finished: bool, told: bool, expected: Outcome) -> None:
    assert outcome(code, said_finished=finished, told_to_leave=told) is expected


TEACHERS = replace(SPEC, kind=JobKind.TEACHER, service="svc")


@pytest.mark.parametrize(
    ("leave_by_s", "timeout_s"),
    [(None, 30.0), (115.0, 15.0), (101.0, 10.0), (500.0, 30.0)],
)
def test_a_teacher_leaves_on_sigterm_and_gets_the_time_of_a_leave(leave_by_s: float | None, timeout_s: float) -> None:
    view = View(NODE, {"j": JobView(TEACHERS, plan())}, (local(cold=True, started_s=0.0),), leave_by_s=leave_by_s)
    [stop] = decide(view, 100.0).actions
    assert isinstance(stop, StopWorker)
    assert stop.timeout_s == timeout_s


def test_a_teacher_has_no_gate_to_be_late_for_and_no_driver() -> None:
    job = JobView(TEACHERS, plan(W1, driver=None))
    view = View(NODE, {"j": job}, (local(cold=True, started_s=0.0),))
    assert decide(view, 1e6).actions == ()
