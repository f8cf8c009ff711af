"""A checkpoint folder: which attempts are in it, what each is worth, and how one is removed.

Invariant: what is in the folder is judged by what the file system answers now; an error while asking is raised and
never read as "not there". It compares names and sizes only; contents are read by the loader.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass

from checkpoints.drivers.base import Driver, Entry, read_file
from checkpoints.errors import (
    CheckpointDamaged,
    CheckpointError,
    CheckpointExists,
    CheckpointNotFound,
    CheckpointPermission,
    CheckpointUnsupported,
    InvalidManifest,
    UnknownManifestVersion,
)
from checkpoints.layout import (
    LATEST,
    MANIFEST,
    MANIFEST_LIMIT_BYTES,
    PIN,
    AttemptName,
    Manifest,
    parse_attempt,
    parse_manifest,
)
from checkpoints.retention import Collect, Condition, Found, Keep, collectable
from checkpoints.train_status import TrainStatus

logger = logging.getLogger(__name__)

#: An attempt's name has at most 85 characters.
_HINT_LIMIT_BYTES = 256


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
        pinned: it is never collected until it is unpinned.
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
    pinned: bool = False


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
    pinned: bool = False

    def found(self) -> Found:
        """The same as retention sees it."""
        status = self.manifest.status if self.manifest else None
        return Found(self.attempt, self.condition, status, self.pinned)

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
            pinned=self.pinned,
        )


def attempts(driver: Driver) -> list[AttemptName]:
    """The attempts in the folder, newest first; names that are not ours are passed over. No folder: none.

    An attempt that the listing leaves out, as some object stores do for a while, is seen all the same when the hint
    names it. The hint only adds a name to look at: what is there decides.

    Raises:
        CheckpointUnavailable: if the file system cannot answer.
        CheckpointUnsupported: if a file is there instead of a folder.
    """
    try:
        entries = driver.list_dir("")
    except CheckpointNotFound:
        _refuse_file(driver)
        return []
    found = {parse_attempt(entry.name) for entry in entries if entry.is_dir}
    # To some clients reading a folder is an outage.
    foreign = any(entry.name == LATEST and entry.is_dir for entry in entries)
    hinted = None if foreign else _hinted(driver)
    if hinted is not None and hinted not in found and _is_there(driver, f"{hinted}/{MANIFEST}"):
        found.add(hinted)
    return sorted((attempt for attempt in found if attempt is not None), reverse=True)


def _refuse_file(driver: Driver) -> None:
    """Whoever names a file as the folder has made a mistake, and would be told only when the first save fails."""
    with suppress(CheckpointNotFound):
        if not driver.info("").is_dir:
            raise CheckpointUnsupported(f"{driver.url} is a file: give the URL of a folder", url=driver.url)


def _hinted(driver: Driver) -> AttemptName | None:
    try:
        return parse_attempt(read_file(driver, LATEST, _HINT_LIMIT_BYTES).decode("ascii", "replace").strip())
    except (CheckpointNotFound, CheckpointPermission, ValueError):
        return None  # none yet, being replaced, or foreign


def _is_there(driver: Driver, path: str) -> bool:
    try:
        driver.info(path)
    except CheckpointNotFound:
        return False
    return True


def hint(driver: Driver, attempt: AttemptName) -> None:
    """Let the hint name this attempt, which is committed and the newest; call after it is durable.

    It is removed and written again, since few file systems can replace a file: without it nothing is lost.
    """
    try:
        driver.remove(LATEST)
        driver.write_once(LATEST, f"{attempt}\n".encode())
    except CheckpointExists:
        logger.debug("another saver moved the hint in %s at the same moment", driver.url)
    except CheckpointError as error:
        logger.warning("saved %s, but could not move the hint %s/%s: %s", attempt, driver.url, LATEST, error)


def examine(driver: Driver, attempt: AttemptName) -> Examined:
    """Judge one attempt by its manifest and the sizes of its shards.

    Raises:
        CheckpointUnavailable: if the file system cannot answer.
    """
    try:
        entries = {entry.name: entry for entry in driver.list_dir(str(attempt))}
        pinned = PIN in entries
        if MANIFEST not in entries or entries[MANIFEST].is_dir:
            return Examined(attempt, Condition.UNFINISHED, None, "no manifest: the save did not finish", pinned)
        data = read_file(driver, f"{attempt}/{MANIFEST}", MANIFEST_LIMIT_BYTES)
    except CheckpointNotFound:
        return Examined(attempt, Condition.UNFINISHED, None, "it was removed while it was being looked at")
    except ValueError as error:
        return Examined(attempt, Condition.DAMAGED, None, str(error), pinned)
    try:
        manifest = parse_manifest(data, attempt)
    except UnknownManifestVersion as error:
        return Examined(attempt, Condition.UNKNOWN, None, str(error), pinned)
    except InvalidManifest as error:
        return Examined(attempt, Condition.DAMAGED, None, str(error), pinned)
    problem = _shard_problem(manifest, entries)
    return Examined(attempt, Condition.DAMAGED if problem else Condition.VALID, manifest, problem, pinned)


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


def plan(driver: Driver, keep: Keep, ours: AttemptName | None = None) -> list[Collect]:
    """What `collect` would remove; see `retention.collectable`."""
    return collectable((examine(driver, attempt).found() for attempt in attempts(driver)), keep, ours)


def collect(driver: Driver, keep: Keep, ours: AttemptName | None = None) -> list[Collect]:
    """Remove what the rules let go; returns what was removed.

    Args:
        ours: the attempt that was committed just now, None for who saves nothing.

    Raises:
        CheckpointError: what the driver raises; what was removed until then stays removed.
    """
    removed = []
    for item in plan(driver, keep, ours):
        if _is_there(driver, f"{item.attempt}/{PIN}"):
            continue  # pinned since it was examined
        remove(driver, item.attempt)
        logger.info("removed checkpoint %s from %s: %s", item.attempt, driver.url, item.reason)
        removed.append(item)
    return removed


def pin(driver: Driver, attempt: AttemptName) -> None:
    """Keep a valid checkpoint until it is unpinned; fine if it is pinned.

    Raises:
        CheckpointDamaged: if it is not valid, or was collected at the same moment.
    """
    before = examine(driver, attempt)
    if before.condition is not Condition.VALID:
        raise CheckpointDamaged(f"{attempt} in {driver.url} cannot be pinned: {before.problem}", url=driver.url)
    try:
        driver.write_once(f"{attempt}/{PIN}", b"this checkpoint is kept until its pin is removed\n")
    except CheckpointExists:
        return
    except CheckpointNotFound as error:
        raise CheckpointDamaged(f"{attempt} in {driver.url} was removed meanwhile", url=driver.url) from error
    after = examine(driver, attempt)
    if after.condition is not Condition.VALID:
        raise CheckpointDamaged(f"{attempt} in {driver.url} was collected meanwhile: {after.problem}", url=driver.url)


def unpin(driver: Driver, attempt: AttemptName) -> None:
    """Take the pin away; fine if there is none."""
    driver.remove(f"{attempt}/{PIN}")
