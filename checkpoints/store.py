"""A checkpoint folder: which attempts are in it, what each is worth, and how one is removed.

Invariant: what is in the folder is judged by what the file system answers now; an error while asking is raised and
never read as "not there". It compares names and sizes only; contents are read by the loader.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from checkpoints.drivers.base import Driver, Entry, read_file
from checkpoints.errors import CheckpointNotFound, InvalidManifest, UnknownManifestVersion
from checkpoints.layout import MANIFEST, MANIFEST_LIMIT_BYTES, AttemptName, Manifest, parse_attempt, parse_manifest
from checkpoints.policy import Condition, collectable
from checkpoints.train_status import TrainStatus

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint of a folder, for people and programs.

    Attributes:
        url: the folder.
        name: its directory in the folder, unique for ever.
        number: its number; two savers at the same moment may share one.
        driver_epoch, global_step: its order.
        status: where the training stood; None if the manifest cannot be read.
        size_bytes: bytes of its shards; 0 if the manifest cannot be read.
        created: wall time of saving, ISO 8601 in UTC, empty if the manifest cannot be read.
        condition: valid, damaged, unfinished or unknown.
        problem: why it is not valid, in words; None if it is.
    """

    url: str
    name: str
    number: int
    driver_epoch: int
    global_step: int
    status: TrainStatus | None
    size_bytes: int
    created: str
    condition: Condition
    problem: str | None


@dataclass(frozen=True)
class Skipped:
    """A newer checkpoint that was not used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Examined:
    """An attempt after a look at it; the manifest is there if and only if it parsed."""

    attempt: AttemptName
    condition: Condition
    manifest: Manifest | None
    problem: str | None

    def info(self, url: str) -> CheckpointInfo:
        """The same as a public record."""
        attempt, manifest = self.attempt, self.manifest
        return CheckpointInfo(
            url=url,
            name=str(attempt),
            number=attempt.number,
            driver_epoch=attempt.driver_epoch,
            global_step=attempt.global_step,
            status=manifest.status if manifest else None,
            size_bytes=manifest.size_bytes if manifest else 0,
            created=manifest.created if manifest else "",
            condition=self.condition,
            problem=self.problem,
        )


def attempts(driver: Driver) -> list[AttemptName]:
    """The attempts in the folder, newest first; names that are not ours are passed over. No folder: none.

    Raises:
        CheckpointUnavailable: if the file system cannot answer.
    """
    try:
        entries = driver.list_dir("")
    except CheckpointNotFound:
        return []
    found = (parse_attempt(entry.name) for entry in entries if entry.is_dir)
    return sorted((attempt for attempt in found if attempt is not None), reverse=True)


def examine(driver: Driver, attempt: AttemptName) -> Examined:
    """Judge one attempt by its manifest and the sizes of its shards.

    Raises:
        CheckpointUnavailable: if the file system cannot answer.
    """
    try:
        entries = {entry.name: entry for entry in driver.list_dir(str(attempt))}
        if MANIFEST not in entries or entries[MANIFEST].is_dir:
            return Examined(attempt, Condition.UNFINISHED, None, "no manifest: the save did not finish")
        data = read_file(driver, f"{attempt}/{MANIFEST}", MANIFEST_LIMIT_BYTES)
    except CheckpointNotFound:
        return Examined(attempt, Condition.UNFINISHED, None, "it was removed while it was being looked at")
    except ValueError as error:
        return Examined(attempt, Condition.DAMAGED, None, str(error))
    try:
        manifest = parse_manifest(data, attempt)
    except UnknownManifestVersion as error:
        return Examined(attempt, Condition.UNKNOWN, None, str(error))
    except InvalidManifest as error:
        return Examined(attempt, Condition.DAMAGED, None, str(error))
    problem = _shard_problem(manifest, entries)
    return Examined(attempt, Condition.DAMAGED if problem else Condition.VALID, manifest, problem)


def _shard_problem(manifest: Manifest, entries: dict[str, Entry]) -> str | None:
    for shard in manifest.shards:
        entry = entries.get(shard.name)
        if entry is None or entry.is_dir:
            return f"shard {shard.name} is missing"
        if entry.size_bytes != shard.size_bytes:
            return f"shard {shard.name} has {entry.size_bytes} bytes instead of {shard.size_bytes}"
    return None


def remove(driver: Driver, attempt: AttemptName) -> None:
    """Remove an attempt, its manifest first: a crash in between leaves an unfinished attempt, not a damaged one."""
    driver.remove(f"{attempt}/{MANIFEST}")
    driver.remove_tree(str(attempt))


def collect(driver: Driver, ours: AttemptName, keep: int) -> list[str]:
    """Remove what the policy lets go after `ours` was committed; returns the names removed."""
    found = [(attempt, examine(driver, attempt).condition) for attempt in attempts(driver)]
    removed = []
    for item in collectable(found, ours, keep):
        remove(driver, item.attempt)
        logger.info("removed checkpoint %s from %s: %s", item.attempt, driver.url, item.reason)
        removed.append(str(item.attempt))
    return removed
