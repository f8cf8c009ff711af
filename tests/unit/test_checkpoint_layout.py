"""Names, manifest and status: round trips, order, and refusal of everything else."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.errors import (
    CheckpointUnavailable,
    InvalidManifest,
    InvalidStatus,
    UnknownManifestVersion,
)
from checkpoints.layout import (
    AttemptName,
    Manifest,
    Shard,
    ShardName,
    checksum,
    parse_attempt,
    parse_manifest,
    parse_shard,
)
from checkpoints.train_status import TrainStatus

COUNT = st.integers(0, 10**15)
TOKEN = st.text("0123456789abcdef", min_size=12, max_size=12)
ATTEMPTS = st.builds(AttemptName, COUNT, COUNT, COUNT, TOKEN)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
STATUSES = st.builds(
    TrainStatus,
    epoch_no=st.integers(-1, 10**9),
    position=COUNT,
    global_step=COUNT,
    samples=COUNT,
    total_batch_size=COUNT,
    world_size=COUNT,
    user=st.dictionaries(st.text(), JSON, max_size=3),
    ledger=st.none() | st.text(),
    extra=st.dictionaries(st.text().map(lambda text: f"later_{text}"), JSON, max_size=2),
)
ATTEMPT = AttemptName(2, 50, 7, "0123456789ab")
MANIFEST = Manifest(
    ATTEMPT,
    TrainStatus(epoch_no=4, global_step=50, user={"name": "é"}),
    (Shard("model-00000-of-00001.safetensors", 5, checksum(b"model")),),
    "2026-01-02T03:04:05+00:00",
)


@given(ATTEMPTS)
def test_attempt_names_round_trip(attempt: AttemptName) -> None:
    assert parse_attempt(str(attempt)) == attempt


@given(st.text())
def test_a_name_that_parses_is_the_one_that_is_built(text: str) -> None:
    for parse in (parse_attempt, parse_shard):
        parsed = parse(text)
        assert parsed is None or str(parsed) == text


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ckpt-7-e2-s50-0123456789ab",
        "ckpt-000000007-e2-s50-0123456789ab",
        "ckpt-00000007-e02-s50-0123456789ab",
        "ckpt-00000007-e2-s50-0123456789AB",
        "ckpt-00000007-e2-s50-0123456789ab\n",
        "ckpt-0000000٧-e2-s50-0123456789ab",
        "ckpt-00000007-e2-s50-0123456789ab.tmp",
        "__paddle_checkpoint__.3",
        "_temporary",
    ],
)
def test_foreign_directories_are_not_attempts(name: str) -> None:
    assert parse_attempt(name) is None


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True), st.integers(0, 99_998), st.integers(1, 99_999)
)
def test_shard_names_round_trip(state: str, part: int, parts: int) -> None:
    if part < parts:
        assert parse_shard(str(ShardName(state, part, parts))) == ShardName(state, part, parts)


@pytest.mark.parametrize("state", ["", "a/b", "../up", ".hidden", "a b", "x" * 65, "é"])
def test_a_state_name_must_be_a_file_name(state: str) -> None:
    with pytest.raises(ValueError, match="state name"):
        ShardName(state)


def test_the_newest_is_by_driver_epoch_then_step_then_number() -> None:
    token = "0" * 12
    old_to_new = [
        AttemptName(1, 900, 9, token),
        AttemptName(2, 10, 3, token),
        AttemptName(2, 11, 2, token),
        AttemptName(2, 11, 4, token),
        AttemptName(2, 11, 4, "1" * 12),
    ]
    shuffled = [old_to_new[n] for n in (3, 0, 4, 2, 1)]
    assert sorted(shuffled) == old_to_new


@given(STATUSES)
def test_a_status_round_trips_through_json(status: TrainStatus) -> None:
    assert TrainStatus.from_json(status.to_json()) == status


def test_a_status_starts_before_epoch_zero() -> None:
    assert TrainStatus() == TrainStatus(epoch_no=-1)
    assert TrainStatus().next() == 0
    assert TrainStatus(epoch_no=4).next() == 5
    assert TrainStatus(epoch_no=4) != TrainStatus(epoch_no=4, position=1)


def test_fields_of_a_later_version_are_kept() -> None:
    status = TrainStatus.from_json('{"epoch_no": 3, "mood": [1, {"x": null}]}')
    assert status.epoch_no == 3
    assert json.loads(status.to_json())["mood"] == [1, {"x": None}]


def test_a_status_does_not_follow_later_changes_of_the_users_dict() -> None:
    user = {"scores": [1]}
    status = TrainStatus(user=user)
    user["scores"].append(2)
    assert status.user == {"scores": [1]}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"epoch_no": -2}, "epoch_no must be at least -1"),
        ({"position": -1}, "position must be at least 0"),
        ({"global_step": True}, "global_step must be an integer"),
        ({"samples": 1.5}, "samples must be an integer"),
        ({"ledger": 5}, "ledger must be a string"),
        ({"user": {"a": (1, 2)}}, r"user\['a'\] would change"),
        ({"user": {1: 2}}, "user has the key 1"),
        ({"user": {"fine": 1, "loss": float("nan")}}, r"user\['loss'\] is nan.*leave it out"),
        ({"user": {"a": [object()]}}, r"user\['a'\] is of type list"),
        ({"user": [1]}, "user must be a mapping"),
        ({"extra": {"epoch_no": 1}}, "extra repeats"),
    ],
)
def test_a_wrong_status_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidStatus, match=said):
        TrainStatus(**fields)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"epoch_no": "1"}', '{"epoch_no": 1, "user": 3}', "{'epoch_no': 1}"])
def test_a_status_that_does_not_parse_is_refused(text: str) -> None:
    with pytest.raises(InvalidStatus):
        TrainStatus.from_json(text)


@given(ATTEMPTS, STATUSES, st.lists(st.builds(Shard, st.just("m-00000-of-00001.safetensors"), COUNT), max_size=0))
def test_a_manifest_round_trips(attempt: AttemptName, status: TrainStatus, shards: list[Shard]) -> None:
    manifest = Manifest(attempt, status, (*MANIFEST.shards, *shards), "now")
    assert parse_manifest(manifest.to_bytes(), attempt) == manifest


@given(st.data())
def test_no_altered_manifest_is_taken(data: st.DataObject) -> None:
    good = MANIFEST.to_bytes()
    at = data.draw(st.integers(0, len(good) - 2))  # the last byte is a newline outside of the JSON
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    try:
        found = parse_manifest(bytes(bad), ATTEMPT)
    except InvalidManifest:
        return
    assert found == MANIFEST  # white space between two values may change and mean the same


@given(st.integers(0, len(MANIFEST.to_bytes()) - 2))
def test_no_cut_manifest_is_taken(length: int) -> None:
    with pytest.raises(InvalidManifest):
        parse_manifest(MANIFEST.to_bytes()[:length], ATTEMPT)


@given(st.binary(max_size=200))
def test_no_foreign_file_is_a_manifest(data: bytes) -> None:
    with pytest.raises(InvalidManifest):
        parse_manifest(data, ATTEMPT)


def test_a_manifest_copied_into_another_directory_is_refused() -> None:
    with pytest.raises(InvalidManifest, match="belongs to"):
        parse_manifest(MANIFEST.to_bytes(), AttemptName(2, 51, 7, "0123456789ab"))


def resealed(change: dict[str, Any]) -> bytes:
    """The manifest with some fields changed and a checksum that fits them."""
    body = json.loads(MANIFEST.to_bytes())["manifest"] | change
    seal = checksum(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
    return json.dumps({"manifest": body, "checksum": seal}).encode()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"attempt": "elsewhere"},
        {"attempt": 3},
        {"number": 8},
        {"order": {"driver_epoch": 2, "global_step": 51}},
        {"order": []},
        {"status": {}},
        {"shards": [{"name": "../../etc/passwd", "size_bytes": 1, "checksum": "xxh3:" + "0" * 32}]},
        {"shards": [{"name": "m-00000-of-00001.safetensors", "size_bytes": -1, "checksum": "xxh3:" + "0" * 32}]},
        {"shards": [{"name": "m-00000-of-00001.safetensors", "size_bytes": 1, "checksum": "md5:0"}]},
        {"shards": 2 * [{"name": "m-00000-of-00001.safetensors", "size_bytes": 1, "checksum": "xxh3:" + "0" * 32}]},
        {"shards": [{"name": 4}]},
    ],
)
def test_a_sealed_manifest_that_does_not_hold_together_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidManifest):
        parse_manifest(resealed(change), ATTEMPT)


def test_a_manifest_of_a_later_version_is_told_apart() -> None:
    with pytest.raises(UnknownManifestVersion, match="version 2"):
        parse_manifest(resealed({"version": 2}), ATTEMPT)


def test_fields_that_a_later_version_adds_to_a_manifest_do_no_harm() -> None:
    assert parse_manifest(resealed({"pinned": True}), ATTEMPT) == MANIFEST


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(CheckpointUnavailable("away", url="hdfs://x/y", operation="list")))
    assert (str(error), error.url, error.operation) == ("away", "hdfs://x/y", "list")
