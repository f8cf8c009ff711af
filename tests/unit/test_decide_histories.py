"""A JobClient that applies what it decides: stopping after any action changes no end, and nothing is done twice."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import replace as with_

from decide_parts import ENDED, NODE, SPEC, STATUS, plan, record
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edl_collective.coord.records import JobKind, PlannedWorker, WorkerRecord, WorkerState
from jobclient.decide import (
    Action,
    AskBack,
    GiveUp,
    JobView,
    LetLeave,
    LocalDriver,
    LocalWorker,
    StartDriver,
    StartWorker,
    StopDriver,
    StopWorker,
    View,
    decide,
)


@dataclass
class SimulatedNode:
    """Applies actions as the agent does, and checks what must never happen."""

    jobs: dict[str, JobView]
    workers: dict[tuple[str, str], LocalWorker] = field(default_factory=dict)
    drivers: dict[str, LocalDriver] = field(default_factory=dict)
    closing: bool = False
    started: set[tuple[str, str]] = field(default_factory=set)

    def view(self) -> View:
        workers, drivers = tuple(self.workers.values()), tuple(self.drivers.values())
        return View(NODE, self.jobs, workers, drivers, self.closing)

    def apply(self, action: Action) -> None:
        match action:
            case StartWorker(job, planned):
                assert (job, planned.worker) not in self.started, "an id is started once"
                assert planned.slot not in {w.slot for w in self.workers.values()}, "a slot holds one worker"
                self.started.add((job, planned.worker))
                self.workers[job, planned.worker] = LocalWorker(job, planned.worker, planned.slot, cold=True)
            case LetLeave(job, worker, leave_by_s):
                before = self.workers[job, worker]
                assert before.leave_by_s is None
                self.workers[job, worker] = with_(before, leave_by_s=leave_by_s)
            case StopWorker(job, worker):
                assert not self.workers[job, worker].stopping
                self.workers[job, worker] = with_(self.workers[job, worker], stopping=True)
            case AskBack() | GiveUp():
                raise AssertionError("nobody hangs here")
            case StartDriver(job):
                assert not self.drivers.get(job, LocalDriver(job, running=False)).running
                self.drivers[job] = LocalDriver(job, running=True)
            case StopDriver(job):
                assert self.drivers[job].running
                self.drivers[job] = with_(self.drivers[job], stopping=True)

    def stopped_processes_end(self) -> None:
        for name, worker in list(self.workers.items()):
            if worker.stopping:
                job = self.jobs.get(worker.job)
                if job is not None:
                    ended = record(worker.worker, WorkerState.EXITED)
                    self.jobs[worker.job] = with_(job, workers={**job.workers, worker.worker: ended})
                del self.workers[name]
        self.drivers = {job: driver for job, driver in self.drivers.items() if not driver.stopping}

    def settle(self, per_round: int | None) -> tuple[object, ...]:
        """Decide and apply (only the first `per_round` actions) until nothing is left to do."""
        now_s = 0.0
        for _ in range(200):
            actions = decide(self.view(), now_s).actions
            for action in actions[:per_round]:
                self.apply(action)
            if not actions:
                wake = decide(self.view(), now_s).wake_at_s
                if wake is None and not any(w.stopping for w in self.workers.values()):
                    return (sorted(self.workers), sorted(j for j, d in self.drivers.items() if d.running))
                now_s = max(now_s, wake or now_s)
            self.stopped_processes_end()
        raise AssertionError("never settles")


NAMES = [f"w{number}" for number in range(6)]


@st.composite
def job_views(draw: st.DrawFn, job: str) -> JobView:
    workers = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    planned = [PlannedWorker(w, draw(st.sampled_from("ab")), draw(st.integers(0, 2))) for w in workers]
    states = st.sampled_from([WorkerState.RUNNING, WorkerState.EXITED])
    known: Mapping[str, WorkerRecord] = {
        name: record(name, draw(states), "life-1") for name in draw(st.lists(st.sampled_from(NAMES), max_size=2))
    }
    return JobView(
        spec=draw(st.sampled_from([None, replace(SPEC, job=job), replace(SPEC, job=job, kind=JobKind.EXTERNAL)])),
        plan=draw(st.sampled_from([None, plan(*planned, driver=draw(st.sampled_from([None, "a", "b"])))])),
        status=draw(st.sampled_from([None, STATUS, ENDED.status])),
        workers=known,
    )


@st.composite
def nodes(draw: st.DrawFn) -> SimulatedNode:
    jobs = {name: draw(job_views(name)) for name in draw(st.sampled_from([[], ["j"], ["j", "k"]]))}
    node = SimulatedNode(jobs, closing=draw(st.booleans()))
    for slot in draw(st.sets(st.integers(0, 1))):
        name = (draw(st.sampled_from("jk")), draw(st.sampled_from(NAMES)))
        cold, stopping = draw(st.booleans()), draw(st.booleans())
        node.workers[name] = LocalWorker(*name, slot, cold=cold, stopping=stopping)
        node.started.add(name)
    for job in draw(st.sets(st.sampled_from("jk"))):
        node.drivers[job] = LocalDriver(job, running=draw(st.booleans()))
    return node


def copy_of(node: SimulatedNode) -> SimulatedNode:
    parts = (dict(node.jobs), dict(node.workers), dict(node.drivers))
    return SimulatedNode(*parts, node.closing, set(node.started))


@settings(max_examples=150, deadline=None)
@given(nodes())
def test_stopping_after_each_action_reaches_the_same_end(node: SimulatedNode) -> None:
    assert copy_of(node).settle(None) == copy_of(node).settle(1)


@settings(max_examples=150, deadline=None)
@given(nodes())
def test_nothing_is_decided_twice(node: SimulatedNode) -> None:
    first = decide(node.view(), 0.0).actions
    for action in first:
        node.apply(action)
    assert not set(map(repr, decide(node.view(), 0.0).actions)) & set(map(repr, first))


@settings(max_examples=100, deadline=None)
@given(nodes())
def test_closing_ends_with_nothing_running(node: SimulatedNode) -> None:
    node.closing = True
    assert node.settle(None) == ([], [])
