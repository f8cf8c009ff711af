"""Several jobs on one cluster: who waits, who gives, who takes, and what people are told."""

from dataclasses import replace

from job_world import CONFIG, World

from edl_collective.coord.records import Phase


def cluster(*sizes: int, **rules: float) -> World:
    world = World(replace(CONFIG, **rules))  # type: ignore[arg-type]
    for i, slots in enumerate(sizes):
        world.join("abcdef"[i], slots)
    return world


def start(world: World, job: str, **fields: object) -> None:
    world.submit(job, **fields)
    world.settle()
    world.run_workers(job)
    world.settle()


def let_go(world: World, *jobs: str) -> None:
    for job in jobs:
        world.let_go(job)
    world.settle()


def test_a_newcomer_gets_its_fair_part_by_drains() -> None:
    world = cluster(4, 4)
    start(world, "old", max_np=8)
    world.submit("new", max_np=8)
    world.settle()
    assert (len(world.ids("old")), world.jobs["new"].plan) == (4, None), "its slots are still busy"
    let_go(world, "old")
    assert len(world.ids("new")) == 4


def test_a_higher_priority_takes_a_whole_job_and_gives_it_back() -> None:
    world = cluster(4)
    start(world, "low", min_np=3, max_np=4)
    world.submit("high", min_np=4, max_np=4, priority=10)
    world.settle()
    assert (world.ids("low"), world.status("low").phase) == ([], Phase.HOLDING)
    assert "high, which has a higher priority, took its slots" in world.status("low").reason
    let_go(world, "low")
    assert len(world.ids("high")) == 4
    world.now_s += 10 * world.jobs["low"].spec.value.hold_timeout_s
    world.settle()
    assert world.status("low").phase is Phase.HOLDING, "it waits for its turn as long as it takes"
    world.run_workers("high")
    for worker in world.ids("high"):
        world.finish(worker, "high")
    world.settle()
    world.let_go("high")
    world.settle()
    assert (len(world.ids("low")), world.status("low").phase) == (4, Phase.RUNNING)
    assert world.status("low").preempted_for is None
    assert world.status("low").failures == 0


def test_a_job_that_lost_its_nodes_is_not_preempted_and_may_time_out() -> None:
    world = cluster(2, 2)
    start(world, "j", min_np=3, max_np=4)
    world.lose("b")
    world.settle()
    assert world.status("j").phase is Phase.HOLDING
    world.now_s += world.jobs["j"].spec.value.hold_timeout_s + 1
    world.settle()
    assert world.status("j").phase is Phase.FAILED


def test_whoever_waits_too_long_is_not_overtaken_any_more() -> None:
    world = cluster(4, patience_s=100.0)
    start(world, "runs", min_np=2, max_np=2)
    world.submit("big", min_np=4, max_np=4)
    decision = world.settle()
    assert decision.wake_at == world.now_s + 100.0
    start(world, "small", max_np=1)
    assert len(world.ids("small")) == 1, "it overtakes"
    world.now_s += 101
    world.submit("late", max_np=1)
    decision = world.settle()
    assert world.status("late").phase is Phase.PENDING
    assert "big has waited for too long and begins first" in world.status("late").reason
    assert decision.wake_at is None or decision.wake_at > world.now_s
    for job in ("runs", "small"):
        for worker in world.ids(job):
            world.finish(worker, job)
    world.settle()
    assert len(world.ids("big")) == 4


def test_no_growth_that_is_not_worth_its_pause() -> None:
    world = cluster(2)
    start(world, "j", max_np=4)
    world.measure("j", rate=100.0, pause_s=2.0, left=150)
    world.join("b", 2)
    world.settle()
    assert len(world.ids("j")) == 2, "it is over before the pause has paid off"
    world.measure("j", rate=100.0, pause_s=0.2, left=10_000)
    world.settle()
    assert len(world.ids("j")) == 4


def test_a_size_that_was_asked_for_is_given_whatever_it_is_worth() -> None:
    world = cluster(2)
    start(world, "j", max_np=4, np=4)
    world.measure("j", rate=100.0, pause_s=2.0, left=150)
    world.join("b", 2)
    world.settle()
    assert len(world.ids("j")) == 4


def test_a_size_that_turned_out_useless_is_not_tried_again() -> None:
    world = cluster(2, 2)
    start(world, "j", max_np=4)
    world.measure("j", rate=110.0, pause_s=1.0)
    world.settle()
    world.lose("b")
    world.settle()
    world.run_workers("j")
    world.measure("j", rate=112.0, pause_s=1.0)
    world.settle()
    world.join("b", 2)
    world.settle()
    assert [speed.np for speed in world.status("j").speeds] == [4, 2]
    assert len(world.ids("j")) == 2


def test_the_load_ceiling_leaves_room_for_who_comes() -> None:
    world = cluster(10, load_ceiling=0.8)
    start(world, "j", max_np=10)
    assert len(world.ids("j")) == 8
    world.submit("next", max_np=1)
    world.settle()
    assert len(world.ids("next")) == 1, "at once: nobody had to leave"
