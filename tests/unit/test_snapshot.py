"""From bytes to a snapshot: a record that does not parse is seen, and what it belongs to is left alone."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import (
    Event,
    JobSpec,
    LeaderRecord,
    NodeRecord,
    Plan,
    PlannedWorker,
    Record,
    WorkerRecord,
    WorkerState,
    encode,
)
from edl_collective.coord.signing import SpecSigner
from edl_collective.coord.store import Versioned
from jobserver.reading import Reading
from jobserver.snapshot import Slot, Snapshot

P = Paths()
SIGNER = SpecSigner(ClusterKey(b"k" * 32))
NODE = NodeRecord(node="a", incarnation="i", address="127.0.0.1", port=1, slots=2)
SPEC = JobSpec(job="j", command=("x",))
PLAN = Plan(
    revision=1, workers=(PlannedWorker("w1", "a", 0),), driver_node="a", reason="", next_worker=2, leader_epoch=1
)
WORKER = WorkerRecord(worker="w1", node="a", slot=0, incarnation="i", state=WorkerState.RUNNING)
ALL: dict[str, Record] = {P.node("a"): NODE, P.spec("j"): SPEC, P.plan("j"): PLAN, P.worker("j", "w1"): WORKER}


def stored(path: str, record: Record) -> bytes:
    return SIGNER.sign(path, record) if isinstance(record, JobSpec) else encode(record)


def snapshot_of(records: dict[str, Record], **raw: bytes) -> Snapshot:
    values = {path: Versioned(stored(path, record), 7) for path, record in records.items()}
    return Reading(P, SIGNER).build(values | {P.root + path: Versioned(data, 3) for path, data in raw.items()})


def test_reads_everything_with_its_version() -> None:
    leader = LeaderRecord(server="s", api_url="http://s", epoch=3, pid=1)
    found = snapshot_of({**ALL, P.leader: leader, P.leader_epoch: leader})
    assert found.problems == ()
    assert (found.nodes, found.leader) == ({"a": NODE}, leader)
    job = found.jobs["j"]
    assert (job.spec.value, job.spec.version, job.workers["w1"].value) == (SPEC, 7, WORKER)
    assert job.plan is not None
    assert job.plan.value == PLAN


def test_events_come_in_order_and_are_not_parsed() -> None:
    event = encode(Event(at=1.0, kind="job", text="t"))
    found = snapshot_of(ALL, **{"/jobs/j/events/e-0000000011": event, "/jobs/j/events/e-0000000002": b"?"})
    assert [e.name for e in found.jobs["j"].events] == ["e-0000000002", "e-0000000011"]
    assert found.problems == ()


def test_an_unreadable_spec_leaves_the_job_alone_with_its_slots() -> None:
    found = snapshot_of(ALL, **{"/jobs/j/spec": b"{"})
    assert found.jobs == {}
    assert found.unreadable_jobs == {"j": frozenset({Slot("a", 0)})}
    assert [p.path for p in found.problems] == [P.spec("j")]
    assert "does not hold a valid record" in found.problems[0].text


def test_an_invalid_spec_is_a_problem_that_says_why() -> None:
    found = snapshot_of(ALL, **{"/jobs/j/spec": b'{"job":"j","command":["x"],"min_np":5,"max_np":2}'})
    assert "min_np must not exceed max_np" in found.problems[0].text


def test_each_unreadable_record_of_a_job_leaves_it_alone() -> None:
    for name in ("plan", "status", "progress", "driver", "rendezvous", "workers/w9"):
        found = snapshot_of(ALL, **{f"/jobs/j/{name}": b"[]"})
        assert found.jobs == {}, name
        assert set(found.unreadable_jobs) == {"j"}, name


def test_a_record_of_a_newer_schema_is_a_problem() -> None:
    found = snapshot_of(ALL, **{"/jobs/j/spec": b'{"schema":99,"job":"j","command":["x"]}'})
    assert "newer EDL" in found.problems[0].text


def test_records_without_a_spec_are_a_problem() -> None:
    found = snapshot_of({k: v for k, v in ALL.items() if not k.endswith("spec")})
    assert "no spec" in found.problems[0].text
    assert found.jobs == {}


def test_an_unreadable_node_is_not_a_missing_node() -> None:
    found = snapshot_of(ALL, **{"/nodes/b": b""})
    assert found.unreadable_nodes == {"b"}
    assert set(found.nodes) == {"a"}


def test_foreign_paths_are_ignored() -> None:
    assert snapshot_of(ALL, **{"/jobs/j/spec/x": b"1", "/other": b"2"}).problems == ()


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(sorted(ALL)), st.sampled_from(["write", "spoil", "remove"])), max_size=3),
        max_size=6,
    )
)
def test_reading_again_is_reading_anew(rounds: list[list[tuple[str, str]]]) -> None:
    values = {path: Versioned(stored(path, record), 0) for path, record in ALL.items()}
    reading = Reading(P, SIGNER)
    reading.build(values)
    for version, changes in enumerate(rounds, 1):
        for path, what in changes:
            if what == "remove":
                values.pop(path, None)
            else:
                record = ALL[path]
                if isinstance(record, JobSpec):  # one that comes back after it was removed is refused
                    record = replace(record, submitted_at=float(version))
                values[path] = Versioned(stored(path, record) if what == "write" else b"{", version)
        assert reading.build(dict(values)) == Reading(P, SIGNER).build(values)
