"""Jobs of teachers: no driver, no end, replaced one by one with a pause that grows, as many as students need."""

from typing import Any

import pytest
from fleet_flow import student, teacher
from job_world import World
from msgspec.structs import replace

from distill.listing import Listing
from edl_collective.coord.job_spec import ChangeRule
from edl_collective.coord.records import JobKind, JobSpec, Outcome, Phase, TeachersAsked, WorkerState
from jobserver.changing import Changing, fill_in
from jobserver.teacher_rule import HOLD_OFF_S, STEP_UP_S, ask, follows_students


def serving(slots: int = 6, **fields: Any) -> World:
    world = World()
    world.join("a", slots)
    world.submit(kind=JobKind.TEACHER, service="svc", **fields)
    world.settle()
    run(world)
    return world


def run(world: World, listed: bool = True) -> None:
    """JobClients start what is planned; it gets into the listing of its service."""
    for worker in world.plan().workers:
        if worker.worker not in world.jobs["j"].workers:
            world.record(worker.worker, WorkerState.RUNNING)
    if listed:
        records = world.jobs["j"].workers
        alive = [w for w in world.ids() if records[w].value.state is WorkerState.RUNNING]
        teachers = {f"j-{w}": replace(teacher(f"j-{w}"), job="j", worker=w) for w in alive}
        world.services["svc"] = Listing(teachers, world.services.get("svc", Listing()).students)
    world.settle()


def demand(world: World, *demands: float | None, starved: float = 0.0) -> None:
    students = {f"s{i}": replace(student(f"s{i}", d), starved=starved) for i, d in enumerate(demands)}
    world.services["svc"] = Listing(world.services["svc"].teachers, students)
    world.settle()


def test_it_runs_without_a_driver() -> None:
    world = serving(np=3)
    assert (len(world.ids()), world.plan().driver_node, world.status().phase) == (3, None, Phase.RUNNING)


def test_one_that_dies_is_replaced_alone() -> None:
    world = serving(np=3)
    world.fail("w2")
    world.settle()
    assert world.ids() == ["w1", "w3", "w4"]
    assert world.status().attempt == 1
    run(world)
    world.fail("w1")
    world.settle()
    assert world.status().failures == 0  # w4 serves: the command can


def test_one_that_ends_by_itself_is_replaced_and_the_job_goes_on() -> None:
    world = serving(np=2)
    world.finish("w1")
    world.settle()
    assert (world.ids(), world.status().phase) == (["w2", "w3"], Phase.RUNNING)


@pytest.mark.parametrize("np", [1, 3])
def test_the_next_come_ever_later_while_none_serves_and_in_the_end_the_job_fails(np: int) -> None:
    world = serving(np=np, min_np=np, max_failures=5)
    pauses = []
    while world.status().phase is not Phase.FAILED:
        before = world.now_s
        world.fail(world.ids()[-1], log_tail="no such model")
        decision = world.settle()
        if len(world.ids()) < np and world.status().phase is not Phase.FAILED:
            assert decision.wake_at is not None
            assert "in a row have died" in world.status().reason
            world.now_s = decision.wake_at
            world.settle()
        run(world, listed=False)
        pauses.append(world.now_s - before)
    assert pauses[:5] == pytest.approx([0, 1, 2, 4, 8], abs=0.1)
    assert "6 teachers failed in a row before one served; max_failures is 5" in world.status().reason
    assert "no such model" in world.status().reason


def test_without_slots_it_waits_for_as_long_as_it_takes() -> None:
    world = serving(np=2, min_np=2, hold_timeout_s=5.0)
    world.lose("a")
    world.settle()
    assert world.status().phase is Phase.HOLDING
    world.now_s += 1000
    decision = world.settle()
    assert world.status().phase is Phase.HOLDING
    assert decision.wake_at is None
    world.join("b", 4)
    world.settle()
    assert (len(world.ids()), world.status().phase) == (2, Phase.RUNNING)


def test_stop_waits_for_the_processes() -> None:
    world = serving(np=2)
    world.edit(stopped=True)
    world.settle()
    assert (world.ids(), world.status().phase) == ([], Phase.STOPPING)
    world.let_go()
    world.settle()
    assert world.status().phase is Phase.STOPPED


def test_a_smaller_np_drops_the_newest() -> None:
    world = serving(np=3)
    world.edit(np=1)
    world.settle()
    assert world.ids() == ["w1"]
    world.record("w3", WorkerState.EXITED, Outcome.LEFT, 0)
    world.settle()
    assert world.status().failures == 0


def test_the_number_follows_the_demand_and_is_given_back_later() -> None:
    world = serving(min_np=1, max_np=5)
    assert world.ids() == ["w1"]
    demand(world, 150.0, 120.0)  # 270 x 1.1 of 100 each
    assert len(world.ids()) == 3
    events = [event.data.decode() for event in world.jobs["j"].events]
    assert "2 students of svc can use 270 samples/s, a teacher answers 100" in events[-1]
    run(world)
    demand(world, 20.0)
    assert len(world.ids()) == 3
    world.now_s += HOLD_OFF_S - 1
    demand(world, 20.0)
    assert len(world.ids()) == 3
    world.now_s += 2
    demand(world, 20.0)
    assert len(world.ids()) == 1
    assert "given back" in world.status().reason
    world.let_go()
    demand(world, 9000.0)
    assert len(world.ids()) == 5
    assert "max_np is 5" in world.status().reason


def test_np_and_schedule_switch_the_rule_off() -> None:
    world = serving(np=2)
    demand(world, 1000.0)
    assert len(world.ids()) == 2
    assert world.status().asked is None
    assert not follows_students(JobSpec(job="j", command=("x",), max_np=4))


SPEC = JobSpec(job="j", command=("x",), min_np=1, max_np=9, kind=JobKind.TEACHER, service="svc")


def fleet(own: int, *demands: float | None, starved: float = 0.0, foreign: float = 0.0) -> Listing:
    teachers = {f"t{i}": replace(teacher(f"t{i}"), job="j", worker=f"w{i}") for i in range(own)}
    if foreign:
        teachers["f"] = teacher("f", foreign)
    students = {f"s{i}": replace(student(f"s{i}", d), starved=starved) for i, d in enumerate(demands)}
    return Listing(teachers, students)


def asked(np: int, since: float = 0.0) -> TeachersAsked:
    return TeachersAsked(np, since, "why")


def test_noise_moves_nothing() -> None:
    for wish in (255.0, 265.0, 250.0, 272.0):
        assert ask(SPEC, fleet(3, wish), 100.0, asked(3)) == asked(3)


def test_teachers_of_others_count() -> None:
    assert ask(SPEC, fleet(1, 500.0, foreign=300.0), 5.0, asked(1)).np == 3


def test_a_short_pause_of_the_students_gives_nothing_back() -> None:
    now = ask(SPEC, fleet(3), 100.0, asked(3))
    assert (now.np, now.fewer_since) == (3, 100.0)
    again = ask(SPEC, fleet(3, 260.0), 100.0 + HOLD_OFF_S - 1, now)
    assert (again.np, again.fewer_since) == (3, None)


def test_a_student_that_cannot_say_gets_one_more_at_a_time() -> None:
    starving = fleet(2, None, starved=1.0)
    now = ask(SPEC, starving, STEP_UP_S, asked(2))
    assert now.np == 3
    assert "cannot say how much they need" in now.why
    assert ask(SPEC, starving, 2 * STEP_UP_S, now).np == 3, "the third has not come yet"
    assert ask(SPEC, fleet(3, None, starved=1.0), STEP_UP_S + 1, now).np == 3, "its effect is not known yet"
    assert ask(SPEC, fleet(3, None, starved=1.0), 2 * STEP_UP_S, now).np == 4


def test_without_a_measured_rate_nothing_is_asked_for() -> None:
    unmeasured = Listing({"t": replace(teacher("t", None), job="j")}, fleet(0, 900.0).students)
    assert ask(SPEC, unmeasured, 10.0, None).np == 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"kind": JobKind.TEACHER}, "names one"),
        ({"service": "s"}, "names one"),
        ({"kind": JobKind.TEACHER, "service": "a/b"}, "cannot name a service"),
        ({"kind": JobKind.TEACHER, "service": "s", "spares": 1}, "no world"),
    ],
)
def test_specs_that_cannot_be(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        JobSpec(job="j", command=("x",), **fields)  # type: ignore[arg-type]


def test_the_changing_script_leaves_teachers_alone() -> None:
    assert fill_in(SPEC, Changing(ChangeRule(60.0, 1, 1), 4)) == SPEC
