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
from edl_collective.coord.signing import SpecSigner, UnsignedSpec, is_unsigned
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
    assert is_unsigned(SIGNER, PATH, encode(SPEC))
    assert not is_unsigned(SIGNER, PATH, b"?")
    assert not is_unsigned(SIGNER, PATH, SIGNED)


def test_the_signature_counts_towards_the_size() -> None:
    fits = MAX_RECORD_BYTES - len(encode(replace(SPEC, env={"A": ""})))
    spec = replace(SPEC, env={"A": "x" * (fits - 40)})
    assert len(encode(spec)) <= MAX_RECORD_BYTES
    with pytest.raises(RecordTooLarge, match="with its signature"):
        SIGNER.sign(PATH, spec)


def test_the_error_survives_pickling() -> None:
    error = UnsignedSpec(PATH)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


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
    agent = snapshot({path: value for path, value in values.items() if path.startswith(P.jobs)}, P, SIGNER)
    assert agent.jobs["j"].spec is None
    assert agent.problems == (str(UnsignedSpec(PATH)),)
