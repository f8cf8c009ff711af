"""Names and the manifest: how a checkpoint lies in its folder. [pure]

    <root>/ckpt-00000007-e2-s12345-0123456789ab/      one attempt to save; the name is unique, so two savers never mix
        model-00000-of-00001.safetensors              shards
        optimizer-00000-of-00001.safetensors
        manifest.json                                 last, written once
        pinned                                        there while a person keeps it
    <root>/LATEST                                     the name of an attempt, a hint that is never trusted

A checkpoint exists if and only if its manifest is there and validates itself.

Invariant: names are built and parsed here and nowhere else, and `parse(format(x)) == x`. The name of an attempt holds
its whole order, so the newest is found by one listing and without reading a clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from checkpoints.errors import InvalidManifest, InvalidStatus, UnknownManifestVersion
from checkpoints.train_status import TrainStatus

#: Where a job saves when nobody said where. Not "checkpoints": in a checkout that is this package.
DEFAULT_FOLDER = "edl_checkpoints"
MANIFEST = "manifest.json"
PIN = "pinned"
LATEST = "LATEST"
FORMAT = "edl-checkpoint"
VERSION = 1
#: A manifest of 10,000 shards takes about 1 MB; more than this is not a manifest.
MANIFEST_LIMIT_BYTES = 16 << 20
TOKEN_DIGITS = 12

#: Epochs, steps and numbers have so many digits at most; what is larger has no name that can be read again.
LARGEST = 10**18 - 1

_ATTEMPT = re.compile(r"ckpt-([0-9]{8,18})-e(0|[1-9][0-9]{0,17})-s(0|[1-9][0-9]{0,17})-([0-9a-f]{12})")
_STATE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SHARD = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})-([0-9]{5})-of-([0-9]{5})\.safetensors")
_CHECKSUM = re.compile(r"xxh3:[0-9a-f]{32}")


@dataclass(frozen=True, order=True)
class AttemptName:
    """One attempt to save. Attempts compare by age: driver epoch, then global step, then number, then token.

    The number is for people ("load 7"). Two savers that run at the same moment may take the same one; they still have
    two attempts, and this order says which is the newer, the same for every reader.

    Raises:
        ValueError: if epoch, step or number is not between 0 and LARGEST.
    """

    driver_epoch: int
    global_step: int
    number: int
    token: str

    def __post_init__(self) -> None:
        for name in ("driver_epoch", "global_step", "number"):
            if not 0 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} {getattr(self, name)} is not between 0 and {LARGEST}")

    def __str__(self) -> str:
        return f"ckpt-{self.number:08d}-e{self.driver_epoch}-s{self.global_step}-{self.token}"


def parse_attempt(name: str) -> AttemptName | None:
    """The attempt that a directory name stands for, None for a name that is not ours."""
    match = _ATTEMPT.fullmatch(name)
    if match is None:
        return None
    attempt = AttemptName(int(match[2]), int(match[3]), int(match[1]), match[4])
    return attempt if str(attempt) == name else None


@dataclass(frozen=True)
class ShardName:
    """One shard: part `part` of `parts` of the state called `state`."""

    state: str
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if _STATE.fullmatch(self.state) is None:
            raise ValueError(f"state name {self.state!r}: use letters, digits, '_', '.', '-', 64 at most")
        if not 0 <= self.part < self.parts <= 99_999:
            raise ValueError(f"shard {self.part} of {self.parts} is out of range")

    def __str__(self) -> str:
        return f"{self.state}-{self.part:05d}-of-{self.parts:05d}.safetensors"


def parse_shard(name: str) -> ShardName | None:
    """The shard that a file name stands for, None for a name that is not a shard's."""
    match = _SHARD.fullmatch(name)
    if match is None or not int(match[2]) < int(match[3]):
        return None
    return ShardName(match[1], int(match[2]), int(match[3]))


def checksum(data: bytes) -> str:
    """`xxh3:` and the 128-bit XXH3 hash of the data in hexadecimal."""
    return f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"


@dataclass(frozen=True)
class Shard:
    """A shard as the manifest lists it: file name, size in bytes, checksum of the whole file."""

    name: str
    size_bytes: int
    checksum: str


@dataclass(frozen=True)
class Manifest:
    """What makes a directory a checkpoint.

    Attributes:
        attempt: the directory it was written for; one that lies elsewhere is refused.
        status: where the training stood.
        shards: every file of the checkpoint, in the order written.
        created: wall time, ISO 8601 in UTC; for people only, nothing is ordered by it.
    """

    attempt: AttemptName
    status: TrainStatus
    shards: tuple[Shard, ...]
    created: str

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size_bytes for shard in self.shards)

    def to_bytes(self) -> bytes:
        """The manifest file: the body and the checksum over the body's canonical JSON."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "number": self.attempt.number,
            "order": {"driver_epoch": self.attempt.driver_epoch, "global_step": self.attempt.global_step},
            "attempt": str(self.attempt),
            "status": self.status.to_dict(),
            "shards": [{"name": s.name, "size_bytes": s.size_bytes, "checksum": s.checksum} for s in self.shards],
            "created": self.created,
        }
        document = {"manifest": body, "checksum": checksum(_canonical(body))}
        return json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def parse_manifest(data: bytes, attempt: AttemptName) -> Manifest:
    """Read and check the manifest found in the directory of `attempt`.

    Raises:
        UnknownManifestVersion: if a later version wrote it.
        InvalidManifest: if it is cut, altered, of another directory, or not a manifest at all.
    """
    body = _checked_body(data)
    try:
        manifest = _from_body(body)
    except InvalidManifest:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidManifest(f"the manifest has a wrong or missing field: {error}") from error
    if manifest.attempt != attempt:
        raise InvalidManifest(f"the manifest belongs to {manifest.attempt}")
    return manifest


def _checked_body(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidManifest(f"the manifest is not JSON (empty, cut or altered): {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("manifest"), dict):
        raise InvalidManifest("the manifest is JSON, but not a manifest")
    body: dict[str, Any] = document["manifest"]
    if document.get("checksum") != checksum(_canonical(body)):
        raise InvalidManifest("the manifest does not match its own checksum")
    if body.get("format") != FORMAT:
        raise InvalidManifest(f"the manifest has the format {body.get('format')!r}, not {FORMAT!r}")
    if body.get("version") != VERSION:
        raise UnknownManifestVersion(f"the manifest has version {body.get('version')!r}, this reads {VERSION}")
    return body


def _from_body(body: dict[str, Any]) -> Manifest:
    attempt = parse_attempt(body["attempt"])
    order = body["order"]
    if attempt is None or (attempt.number, attempt.driver_epoch, attempt.global_step) != (
        body["number"],
        order["driver_epoch"],
        order["global_step"],
    ):
        raise InvalidManifest("the manifest's number and order do not match its attempt")
    shards = tuple(_shard(item) for item in body["shards"])
    if len({shard.name for shard in shards}) != len(shards):
        raise InvalidManifest("the manifest lists a shard twice")
    try:
        status = TrainStatus.from_dict(body["status"])
    except InvalidStatus as error:
        raise InvalidManifest(f"the manifest's status is wrong: {error}") from error
    return Manifest(attempt, status, shards, str(body["created"]))


def _shard(item: Mapping[str, Any]) -> Shard:
    shard = Shard(item["name"], item["size_bytes"], item["checksum"])
    if parse_shard(shard.name) is None:
        raise InvalidManifest(f"the manifest lists {shard.name!r}, which is not a shard's name")
    if type(shard.size_bytes) is not int or shard.size_bytes < 0:
        raise InvalidManifest(f"the manifest gives {shard.name} the size {shard.size_bytes!r}")
    if _CHECKSUM.fullmatch(shard.checksum) is None:
        raise InvalidManifest(f"the manifest gives {shard.name} the checksum {shard.checksum!r}")
    return shard


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
