"""Signed specs: what is not signed, changed or moved is told apart; readers of the record see no change."""

import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.errors import RecordTooLarge
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import (
    MAX_RECORD_BYTES,
    JobSpec,
    JobStatus,
    Phase,
    Plan,
    PlannedWorker,
    decode,
    encode,
)
from edl_collective.coord.signing import MAX_GONE, NewestSpecs, OldSpec, SpecSigner, UnsignedSpec
from edl_collective.coord.store import Versioned
from jobclient.snapshot import snapshot
from jobserver.reading import Reading

P = Paths()
SIGNER = SpecSigner(ClusterKey(b"k" * 32))
STRANGER = SpecSigner(ClusterKey(b"s" * 32))
SPEC = JobSpec(job="j", command=("python", "train.py"), max_np=4, env={"A": "b"})
PATH = P.spec("j")
SIGNED = SIGNER.sign(PATH, SPEC)


def test_a_signed_spec_is_the_same_record_for_everybody() -> None:
    assert SIGNER.is_signed(PATH, SIGNED)
    assert decode(SIGNED, JobSpec, PATH) == SPEC
    assert msgspec.json.decode(SIGNED)["command"] == ["python", "train.py"]


def test_a_field_of_a_later_version_is_covered_and_read_over() -> None:
    class Later(JobSpec, frozen=True, kw_only=True):
        colour: str = "red"

    data = SIGNER.sign(PATH, Later(job="j", command=("x",)))
    assert SIGNER.is_signed(PATH, data)
    assert decode(data, JobSpec, PATH) == JobSpec(job="j", command=("x",))
    assert not SIGNER.is_signed(PATH, data.replace(b"red", b"rot"))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(SPEC), id="no signature"),
        pytest.param(STRANGER.sign(PATH, SPEC), id="another key"),
        pytest.param(SIGNER.sign(P.spec("k"), SPEC), id="of another job"),
        pytest.param(SIGNER.sign(Paths("/other").spec("j"), SPEC), id="of another tree"),
        pytest.param(SIGNED.replace(b"train.py", b"steal.py"), id="changed"),
        pytest.param(SIGNED[:-1] + b',"command":["sh"]}', id="a field that comes twice"),
        pytest.param(b" " + SIGNED, id="a byte more"),
        pytest.param(SIGNED[:79] + b" " + SIGNED[79:], id="a space behind the signature"),
        pytest.param(SIGNED.replace(b'"signature"', b'"Signature"'), id="another name"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_was_not_signed_like_this_is_refused(data: bytes) -> None:
    assert not SIGNER.is_signed(PATH, data)
    with pytest.raises(UnsignedSpec, match=r"not signed with the cluster key.*--key-file"):
        SIGNER.check(PATH, data)


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_no_byte_can_be_changed(place: int, change: int) -> None:
    data = bytearray(SIGNED)
    data[place] ^= change
    assert not SIGNER.is_signed(PATH, bytes(data))


def test_unsigned_is_only_what_is_a_spec() -> None:
    newest = NewestSpecs(SIGNER)
    assert newest.refuses(PATH, encode(SPEC))
    assert not newest.refuses(PATH, b"?")
    assert not newest.refuses(PATH, SIGNED)


def test_the_signature_counts_towards_the_size() -> None:
    fits = MAX_RECORD_BYTES - len(encode(replace(SPEC, env={"A": ""})))
    spec = replace(SPEC, env={"A": "x" * (fits - 40)})
    assert len(encode(spec)) <= MAX_RECORD_BYTES
    with pytest.raises(RecordTooLarge, match="with its signature"):
        SIGNER.sign(PATH, spec)


def test_the_error_survives_pickling() -> None:
    error = UnsignedSpec(PATH)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def spec_at(submitted_at: float, version: int = 0) -> bytes:
    return SIGNER.sign(PATH, replace(SPEC, submitted_at=submitted_at), version)


def test_an_older_spec_of_a_job_is_refused_by_who_has_seen_a_newer_one() -> None:
    newest = NewestSpecs(SIGNER)
    for data in (spec_at(5.0), spec_at(5.0, 1), spec_at(5.0, 10), spec_at(6.0), spec_at(6.0)):
        assert newest.read(PATH, data).command == SPEC.command
    for data in (spec_at(5.0), spec_at(5.0, 10), spec_at(5.0, 99)):
        with pytest.raises(OldSpec, match=r"older spec.*after change 0 of 6.000; delete the job"):
            newest.read(PATH, data)
    assert newest.read(PATH, spec_at(6.0, 2)).submitted_at == 6.0
    with pytest.raises(OldSpec):
        newest.read(PATH, spec_at(6.0, 1))
    assert NewestSpecs(SIGNER).read(PATH, SIGNED) == SPEC  # who begins with nothing cannot know


def test_a_spec_of_a_deleted_job_does_not_come_back() -> None:
    newest = NewestSpecs(SIGNER)
    newest.read(PATH, spec_at(5.0, 3))
    newest.only([PATH])
    newest.read(PATH, spec_at(5.0, 3))
    newest.only([])
    for data in (spec_at(5.0, 3), spec_at(4.0), spec_at(5.0, 2)):
        with pytest.raises(OldSpec, match="the job was deleted"):
            newest.read(PATH, data)
    newest.read(PATH, spec_at(7.0))
    with pytest.raises(OldSpec):
        newest.read(PATH, spec_at(5.0, 9))


def test_a_refused_spec_moves_nothing_on() -> None:
    newest = NewestSpecs(SIGNER)
    newest.read(PATH, spec_at(5.0))
    for data in (STRANGER.sign(PATH, replace(SPEC, submitted_at=9.0)), encode(replace(SPEC, submitted_at=9.0))):
        assert newest.refuses(PATH, data)
    newest.read(PATH, spec_at(5.0))


def test_the_next_submission_is_later_whatever_the_clock_says() -> None:
    newest = NewestSpecs(SIGNER)
    assert newest.after(PATH, 3.0) == 3.0
    newest.read(PATH, spec_at(5.0))
    assert 5.0 < newest.after(PATH, 3.0) < 5.1
    newest.gone(PATH)
    assert 5.0 < newest.after(PATH, 3.0) < 5.1
    newest.read(PATH, spec_at(newest.after(PATH, 3.0)))
    assert newest.after(PATH, 8.0) == 8.0


def test_what_was_deleted_longest_ago_is_forgotten_first() -> None:
    newest = NewestSpecs(SIGNER)
    for number in range(MAX_GONE + 1):
        newest._newest[P.spec(f"j{number}")] = (5.0, 0)
    for number in range(MAX_GONE + 1):
        newest.gone(P.spec(f"j{number}"))
    assert len(newest._gone) == MAX_GONE
    assert (newest.after(P.spec("j0"), 1.0), newest.after(P.spec("j1"), 1.0) > 5.0) == (1.0, True)


def test_job_servers_and_job_clients_refuse_what_was_put_back() -> None:
    old, new = spec_at(5.0), spec_at(5.0, 1)
    reading, newest = Reading(P, SIGNER), NewestSpecs(SIGNER)
    for version, data in enumerate((old, new, old)):
        values = {PATH: Versioned(data, version)}
        seen, agent = reading.build(values), snapshot(values, P, newest)
        refused = version == 2
        assert (set(seen.jobs), agent.jobs["j"].spec is None) == (set() if refused else {"j"}, refused)
    assert "older spec" in seen.problems[0].text
    assert "older spec" in agent.problems[0]
    assert (reading.build({}).jobs, snapshot({}, P, newest).jobs) == ({}, {})
    values = {PATH: Versioned(new, 0)}
    assert not reading.build(values).jobs
    assert snapshot(values, P, newest).jobs["j"].spec is None


PLAN = Plan(
    revision=1, workers=(PlannedWorker("w1", "a", 0),), driver_node="a", reason="", next_worker=2, leader_epoch=1
)


@pytest.mark.parametrize("data", [encode(SPEC), STRANGER.sign(PATH, SPEC)])
def test_job_servers_and_job_clients_leave_it_alone_and_say_so(data: bytes) -> None:
    status = JobStatus(phase=Phase.RUNNING, reason="", since=0.0)
    values = {path: Versioned(text, 1) for path, text in ((PATH, data), (P.plan("j"), encode(PLAN)))}
    values[P.status("j")] = Versioned(encode(status), 1)
    seen = Reading(P, SIGNER).build(values)
    assert (set(seen.jobs), set(seen.unreadable_jobs)) == (set(), {"j"})
    assert [problem.text for problem in seen.problems] == [str(UnsignedSpec(PATH))]
    agent = snapshot({path: value for path, value in values.items() if path.startswith(P.jobs)}, P, NewestSpecs(SIGNER))
    assert agent.jobs["j"].spec is None
    assert agent.problems == (str(UnsignedSpec(PATH)),)
