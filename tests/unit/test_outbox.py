"""What a JobClient writes: never below a job that was removed, nor below a later one of the same name."""

import pytest
from trees import delete_all

from edl_collective.coord.memory_store import MemoryStore
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import Event, JobSpec, WorkerRecord, WorkerState, decode, encode
from jobclient.outbox import Outbox

PATHS = Paths()
W1 = PATHS.worker("j", "w1")
EVENT = Event(at=1.0, kind="t", text="t", fields={})


def record(state: WorkerState) -> WorkerRecord:
    return WorkerRecord(worker="w1", node="a", slot=0, incarnation="i", state=state)


def submit(store: MemoryStore, submitted_at: float) -> None:
    spec = JobSpec(job="j", command=("x",), max_np=1, submitted_at=submitted_at)
    delete_all(store, PATHS.job("j"))
    store.create(PATHS.spec("j"), encode(spec))


def state(store: MemoryStore) -> WorkerState | None:
    found = store.get(W1)
    return None if found is None else decode(found.data, WorkerRecord).state


@pytest.mark.parametrize("written", [False, True])
def test_nothing_of_an_earlier_job_reaches_a_later_one(written: bool) -> None:
    store = MemoryStore()
    submit(store, 1.0)
    outbox = Outbox(store, PATHS)
    if written:
        outbox.put(("j", 1.0), W1, record(WorkerState.RUNNING))
        outbox.flush()
        assert state(store) is WorkerState.RUNNING
    submit(store, 2.0)
    for late in (WorkerState.LEAVING, WorkerState.EXITED):  # the second must not bring the first one back
        outbox.put(("j", 1.0), W1, record(late))
        outbox.event(("j", 1.0), EVENT)
        outbox.flush()
    assert outbox.empty
    assert state(store) is None
    assert store.children(PATHS.events("j")) == []


def test_the_later_job_is_written_from_its_first_record_on() -> None:
    store = MemoryStore()
    submit(store, 1.0)
    outbox = Outbox(store, PATHS)
    for written in (WorkerState.STARTING, WorkerState.RUNNING):
        outbox.put(("j", 1.0), W1, record(written))
        outbox.flush()
    submit(store, 2.0)
    outbox.put(("j", 2.0), W1, record(WorkerState.STARTING))
    outbox.event(("j", 2.0), EVENT)
    outbox.flush()
    assert state(store) is WorkerState.STARTING
    assert len(store.children(PATHS.events("j"))) == 1


def test_what_another_wrote_there_is_gone_on_from() -> None:
    store = MemoryStore()
    submit(store, 1.0)
    store.create(W1, encode(record(WorkerState.STARTING)))
    outbox = Outbox(store, PATHS)
    outbox.put(("j", 1.0), W1, record(WorkerState.STANDBY))
    outbox.flush()
    assert state(store) is WorkerState.STANDBY
