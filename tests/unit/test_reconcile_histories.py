"""The decision about jobs under random histories: it settles, keeps every bound, and survives a crash anywhere."""

from hypothesis import given, settings
from hypothesis import strategies as st
from job_world import World

from edl_collective.coord.records import (
    Outcome,
    Phase,
    WorkerState,
)
from jobserver.reconcile import ForgetEvent, ForgetWorker

WHAT = "join lose drain submit scale run run promote fail fail_all finish leave let_go let_go epoch near_end stop wait"
STEPS = st.lists(st.tuples(st.sampled_from(WHAT.split()), st.integers(0, 5), st.integers(1, 4)), max_size=25)


def happen(world: World, what: str, which: int, count: int) -> None:
    """One random fact; facts that cannot be are passed over."""
    node, job = "abcdef"[which], "jk"[which % 2]
    known, planned = job in world.jobs, []
    if known and world.jobs[job].plan:
        planned = [w for w in world.plan(job).everybody if w.node in world.nodes]
    match what:
        case "join":
            world.join(node, count)
        case "lose" if node in world.nodes:
            world.lose(node)
        case "drain" if node in world.nodes:
            world.drain(node)
        case "submit" if not known:
            world.submit(job, min_np=count, max_np=count + which, max_failures=4, spares=which % 3)
        case "scale" if known:
            spec = world.jobs[job].spec.value
            world.edit(job, np=min(max(which, spec.min_np), spec.max_np))
        case "run" if planned:
            world.run_workers(job)
        case "fail" if planned:
            world.fail(planned[which % len(planned)].worker, job)
        case "fail_all":
            for worker in planned:
                world.fail(worker.worker, job)
        case "finish" if planned:
            world.finish(planned[which % len(planned)].worker, job)
        case "leave" if planned:
            world.record(planned[which % len(planned)].worker, WorkerState.EXITED, Outcome.LEFT, 0, job)
        case "promote" if planned and any(w.worker in world.spares(job) for w in planned):
            alive = [w.worker for w in planned]
            inside = [w.worker for w in world.jobs[job].rendezvous.members if w.worker in alive]
            spare = next(name for name in world.spares(job) if name in alive)
            world.form(*[name for name in inside if name != spare][1:], spare, job=job)
        case "let_go" if known and world.jobs[job].plan:
            world.let_go(job)
        case "epoch" | "near_end" if known:
            world.report(job, epoch=which, near_end=what == "near_end")
        case "stop" if known and which == 5:
            world.edit(job, stopped=True)
        case "wait":
            world.now_s += 100.0 * count


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_random_histories_settle_and_keep_every_bound(steps: list[tuple[str, int, int]]) -> None:
    world = World()
    for what, which, count in steps:
        happen(world, what, which, count)
        world.settle()
        for name, job in world.jobs.items():
            if job.plan is not None:
                alive = [w for w in world.plan(name).workers if w.node in world.nodes]
                assert all(
                    w.slot < world.nodes[w.node].slots or world.status(name).phase is Phase.FINISHING for w in alive
                )


def planned(world: World, without_record: bool = False) -> set[tuple[str, str]]:
    """(job, worker) of all plans; with `without_record` only those that no JobClient has taken up."""
    return {
        (job.name, worker.worker)
        for job in world.jobs.values()
        for worker in (job.plan.value.everybody if job.plan else ())
        if not (without_record and worker.worker in job.workers)
    }


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_all_actions_at_once_or_one_by_one_end_the_same(steps: list[tuple[str, int, int]]) -> None:
    """A crash between any two actions changes nothing: deciding again goes on where it stopped."""
    worlds = [World(), World()]
    for what, which, count in steps:
        for world in worlds:
            happen(world, what, which, count)
        worlds[0].settle()
        unstarted = planned(worlds[1], without_record=True)
        decision = worlds[1].decide()
        for action in decision.actions:
            worlds[1].apply(action)
        # Deletions are bounded, and the slot of a worker that never began is free as soon as no plan lists it.
        handed_on = not unstarted <= planned(worlds[1])
        goes_on = handed_on or any(isinstance(a, ForgetEvent | ForgetWorker) for a in decision.actions)
        assert goes_on or not worlds[1].decide().actions, "applied once, there is nothing left to do"
        worlds[1].settle()
        if handed_on:  # one gets it in the plan that it gets anyhow, the other in the plan after that
            sizes = [{n: len(j.plan.value.workers) if j.plan else 0 for n, j in w.jobs.items()} for w in worlds]
            assert sizes[0] == sizes[1]
            return
        states = [
            {n: (j.plan and j.plan.value, j.status and j.status.value) for n, j in w.jobs.items()} for w in worlds
        ]
        assert states[0] == states[1]
