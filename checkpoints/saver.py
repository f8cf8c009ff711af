"""Saving: a fresh attempt directory, the shards, and the manifest last.

Invariant: until the manifest is there the save never happened, whatever step it stopped at; afterwards the checkpoint
is whole. Two savers never touch each other's files. It does not decide when to save, and blocks until all is durable.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from os import PathLike
from typing import Any, TypeVar

from checkpoints import store
from checkpoints.drivers import Driver, opened
from checkpoints.drivers.base import read_file
from checkpoints.errors import (
    CheckpointDamaged,
    CheckpointError,
    CheckpointExists,
    CheckpointLeaseLost,
    CheckpointNotFound,
    CheckpointUnavailable,
    InvalidStatus,
)
from checkpoints.fleet import FileSystem, place
from checkpoints.layout import MANIFEST, MANIFEST_LIMIT_BYTES, TOKEN_DIGITS, AttemptName, Manifest, Shard, ShardName
from checkpoints.retention import Condition, Keep
from checkpoints.shard_writer import Source, write_shard
from checkpoints.staging import states_of, streamed
from checkpoints.store import CheckpointInfo, Examined
from checkpoints.train_status import TrainStatus

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 3.0


def save_checkpoint(
    path: str | PathLike[str],
    train_status: TrainStatus,
    *,
    state: Mapping[str, Any],
    trainer_id: int = 0,
    driver_epoch: int = 0,
    keep: int | Keep | None = 3,
    remain_all_checkpoint: bool = False,
    driver: str | Driver | None = None,
    fs: FileSystem | None = None,
    hdfs_name: str | None = None,
    hdfs_ugi: str | None = None,
    retry_s: float = 60.0,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> CheckpointInfo | None:
    """Save a checkpoint and collect what is no longer kept. Names and arguments are those of Paddle EDL, where it had
    them; who starts anew may prefer CheckpointManager.

    Args:
        path: the job's checkpoint folder on any file system, a path or a URL; made if it is not there.
        train_status: where the training stands; its global_step is the checkpoint's order within a driver epoch.
        state: by name, objects with `state_dict()` or what such a method returns: nested dicts and lists of tensors,
            numpy arrays, numbers, strings and None.
        trainer_id: the rank; only 0 saves, others return at once.
        driver_epoch: epoch of the driver that this worker belongs to; a worker of an older driver never wins over one
            of a newer.
        keep: how many of the newest valid checkpoints stay, at least 1, or rules for that (Keep); the rest goes, and
            the remains of dead saves. None removes nothing.
        remain_all_checkpoint: the same as keep=None.
        driver: which driver to use, by default the one of the URL's scheme.
        fs: LocalFS(), HDFSClient(...), or the same as `driver`.
        hdfs_name, hdfs_ugi: the NameNode as "hdfs://host:port", and "user,password", for a path without them.
        retry_s: how long a file is written again when writing it fails although the file system answers: a dead
            HDFS DataNode is offered to writers until its NameNode notices. An outage is raised at once.
        now: the wall clock, for the time shown to people.

    Returns:
        What was committed; None on a trainer that does not save.

    Raises:
        StateNotSupported: if the state holds something that cannot be stored without pickling.
        ValueError: if keep, driver_epoch or a state's name is out of range.
        CheckpointPermission, CheckpointQuota, CheckpointUnavailable: if the file system refuses or fails; the previous
            checkpoint is untouched then.
    """
    rules = Keep(keep) if isinstance(keep, int) else keep
    if driver_epoch < 0:
        raise ValueError(f"driver_epoch must not be negative; it is {driver_epoch}")
    if trainer_id != 0:
        return None
    url, chosen = place(path, fs, hdfs_name, hdfs_ugi)
    sources = streamed(states_of(state))
    with opened(url, driver or chosen) as target:
        return commit(
            target,
            train_status,
            sources,
            driver_epoch=driver_epoch,
            keep=None if remain_all_checkpoint else rules,
            retry_s=retry_s,
            now=now,
        )


def commit(
    driver: Driver,
    status: TrainStatus,
    sources: Mapping[ShardName, Source],
    *,
    driver_epoch: int,
    keep: Keep | None,
    retry_s: float,
    now: Callable[[], datetime],
    progress: Callable[[int], None] = lambda _: None,
) -> CheckpointInfo:
    """Write a checkpoint and collect what is no longer kept; see `save_checkpoint`.

    Args:
        sources: by shard, what to write; read again when a file is written again.
        progress: called with the bytes of each chunk when it is written.
    """
    attempt = _next_attempt(driver, status, driver_epoch)
    retry = _Retry(driver, str(attempt), retry_s)
    driver.make_dirs(str(attempt))
    try:
        shards: list[Shard] = []
        for name, source in sources.items():
            path = f"{attempt}/{name}"
            write = partial(write_shard, driver, path, str(name), source, progress)
            shards.append(retry.until_done(write, clear=path))
        manifest = Manifest(attempt, status, tuple(shards), now().isoformat(timespec="seconds"))
        retry.until_done(partial(_write_manifest, driver, f"{attempt}/{MANIFEST}", manifest.to_bytes()))
    except CheckpointError as error:
        _drop(driver, attempt, error)
        raise
    _after_commit(driver, attempt, keep)
    return Examined(attempt, Condition.VALID, manifest, None).info(driver.url)


def _next_attempt(driver: Driver, status: TrainStatus, driver_epoch: int) -> AttemptName:
    present = store.attempts(driver)
    number = max((attempt.number for attempt in present), default=0) + 1
    try:
        attempt = AttemptName(driver_epoch, status.global_step, number, secrets.token_hex(TOKEN_DIGITS // 2))
    except ValueError as error:
        highest = max(present, key=lambda found: max(found.number, found.driver_epoch), default=None)
        named = f" ({highest} is there, a name that no saver comes to: remove it)" if highest else ""
        raise InvalidStatus(f"cannot save in {driver.url}: {error}{named}", url=driver.url) from error
    if present and attempt < present[0]:
        logger.warning(
            "%s holds %s, which is newer than what is saved now (driver epoch %d, step %d): loading goes on from that "
            "one. Load it before training, or choose an empty folder",
            *(driver.url, present[0], driver_epoch, status.global_step),
        )
    return attempt


def _drop(driver: Driver, attempt: AttemptName, error: CheckpointError) -> None:
    """Give back the room of a save that was refused: no later save would fit beside its remains on a full disk.

    An outage, or a folder that was taken over, is left as it is: they are collected with the next valid checkpoint.
    """
    if not isinstance(error, (CheckpointUnavailable, CheckpointLeaseLost)):
        with suppress(CheckpointError):
            store.remove(driver, attempt)


def _write_manifest(driver: Driver, path: str, data: bytes) -> None:
    try:
        driver.write_once(path, data)
    except CheckpointExists:
        # An earlier try may have arrived although its answer was lost. Anything else there is not ours.
        if read_file(driver, path, MANIFEST_LIMIT_BYTES) != data:
            raise


class _Retry:
    """Repeats the writing of one file while the file system itself answers.

    Args:
        driver: asked between two tries whether the folder still answers; an outage then ends the save.
        folder: the attempt's directory.
        retry_s: seconds from the first failure of a file until the last try.
    """

    def __init__(self, driver: Driver, folder: str, retry_s: float) -> None:
        self._driver = driver
        self._folder = folder
        self._retry_s = retry_s

    def until_done(self, write: Callable[[], T], clear: str | None = None) -> T:
        """The result of the first try that succeeds, or the error of the last; `clear` is removed between tries."""
        deadline: float | None = None
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return write()
            except CheckpointUnavailable as error:
                deadline = deadline or time.monotonic() + self._retry_s
                if time.monotonic() + pause_s > deadline:
                    raise
                self._check_folder()
                if clear is not None:
                    self._driver.remove(clear)
                logger.warning("writing again after: %s", error)
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _check_folder(self) -> None:
        """Let an outage end the save, and so the removal of its folder by somebody else."""
        try:
            self._driver.list_dir(self._folder)
        except CheckpointNotFound as error:
            if not getattr(self._driver, "has_folders", True):
                return  # in an object store it is there when a file is in it
            raise CheckpointLeaseLost(
                f"the folder {self._folder} of this save in {self._driver.url} was removed by another process: "
                "does a second job save there?",
                url=self._driver.url,
                operation="write",
            ) from error


def _after_commit(driver: Driver, attempt: AttemptName, keep: Keep | None) -> None:
    """Look that the checkpoint is there, move the hint, collect.

    The save is done: what fails here is worth a warning. Only when another saver tore it apart was it none.

    Raises:
        CheckpointDamaged: if files of this attempt are gone although no newer checkpoint is there.
    """
    try:
        present = store.attempts(driver)
        if present and present[0] > attempt:
            logger.warning("saved %s, which is not the newest: %s is there", attempt, present[0])
        else:
            found = store.examine(driver, attempt)
            if found.condition is not Condition.VALID:
                raise CheckpointDamaged(f"saved {attempt}, but it cannot be read back: {found.problem}", url=driver.url)
            store.hint(driver, attempt)
        if keep is not None:
            store.collect(driver, keep, attempt)
    except CheckpointDamaged:
        raise
    except CheckpointError as error:
        logger.warning("saved %s, but could not remove older checkpoints: %s", attempt, error)


def preflight(url: str, *, driver: str | Driver | None = None, knob: str = "EDL_CHECKPOINT_PATH") -> None:
    """Prove before training that checkpoints can be written here: write, read and remove a small file.

    Args:
        url: the checkpoint folder; it is made if it is not there.
        driver: as in `save_checkpoint`.
        knob: what the user sets to choose the folder, named in the message.

    Raises:
        CheckpointError: of the kind of the cause, with one sentence that names the URL and the knob.
    """
    probe = f".edl-probe-{secrets.token_hex(6)}"
    written = secrets.token_bytes(64)
    try:
        with opened(url, driver) as target:
            target.make_dirs("")
            target.write_once(probe, written)
            found = read_file(target, probe, len(written))
            target.remove(probe)
    except CheckpointError as error:
        message = f"checkpoints cannot be kept at {url} (set by {knob}): {error}"
        raise type(error)(message, url=url, operation="preflight") from error
    if found != written:
        raise CheckpointUnavailable(f"{url} (set by {knob}) gives back other bytes than were written", url=url)
