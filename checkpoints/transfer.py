"""Copying checkpoints between file systems, and choosing one by number or name; no torch is needed.

Invariant: a copy is a checkpoint when its manifest is there, which is written last, after every shard was read back
from where it went and matched its checksum. Nothing that exists is written over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import xxhash

from checkpoints import store
from checkpoints.drivers import Driver, opened
from checkpoints.drivers.base import CHUNK_BYTES, read_file
from checkpoints.errors import CheckpointDamaged, CheckpointError, CheckpointExists, CheckpointNotFound
from checkpoints.layout import MANIFEST, MANIFEST_LIMIT_BYTES, AttemptName, Shard
from checkpoints.retention import Condition
from checkpoints.shard_reader import check_shard
from checkpoints.store import CheckpointInfo, Examined
from checkpoints.upkeep import find

#: Called with the bytes done since the last call.
Progress = Callable[[int], None]


def no_progress(_: int) -> None:
    """Tells nobody."""


def choose(driver: Driver, checkpoint: int | str | None) -> Examined:
    """A valid checkpoint: the newest, the newest of a number, or the one of a name.

    Raises:
        CheckpointNotFound: if there is none.
        CheckpointDamaged: if the one that was asked for is not valid.
    """
    if checkpoint is not None:
        examined = store.examine(driver, find(driver, checkpoint))
        if examined.condition is not Condition.VALID:
            raise CheckpointDamaged(
                f"checkpoint {examined.attempt} in {driver.url} is {examined.condition.value}: {examined.problem}",
                url=driver.url,
            )
        return examined
    for attempt in store.attempts(driver):
        examined = store.examine(driver, attempt)
        if examined.condition is Condition.VALID:
            return examined
    raise CheckpointNotFound(f"there is no valid checkpoint in {driver.url}", url=driver.url)


def copy_checkpoint(
    source_url: str,
    target_url: str,
    checkpoint: int | str | None = None,
    *,
    restart: bool = False,
    progress: Progress = no_progress,
    source_driver: str | Driver | None = None,
    target_driver: str | Driver | None = None,
) -> CheckpointInfo:
    """Copy one checkpoint to another folder, on any file system, under the same name.

    Args:
        checkpoint: its number or name; None is the newest valid one.
        restart: remove what an interrupted copy left there, and begin again.
        progress: told of each byte twice: when it was copied, and when it was read back.

    Returns:
        The copy. Its pin, if the original has one, is not copied.

    Raises:
        CheckpointExists: if it is there already, or what an interrupted copy left of it.
        CheckpointNotFound: if there is no such checkpoint.
        CheckpointDamaged: if the original does not match its checksums, or the copy does not read back as it was
            written.
        CheckpointError: what a driver raises.
    """
    with opened(source_url, source_driver) as source, opened(target_url, target_driver) as target:
        examined = choose(source, checkpoint)
        attempt, manifest = examined.attempt, examined.manifest
        assert manifest is not None, "a valid checkpoint has a manifest"
        data = read_file(source, f"{attempt}/{MANIFEST}", MANIFEST_LIMIT_BYTES)
        _make_room(target, attempt, restart)
        try:
            for shard in manifest.shards:
                copy_shard(source, target, f"{attempt}/{shard.name}", shard, progress)
                check_shard(target, f"{attempt}/{shard.name}", shard, progress)
            target.write_once(f"{attempt}/{MANIFEST}", data)
        except CheckpointExists:
            raise  # somebody else copies it at this moment
        except BaseException:
            with suppress(CheckpointError):
                store.remove(target, attempt)
            raise
        if store.attempts(target)[0] == attempt:
            store.hint(target, attempt)
        return store.examine(target, attempt).info(target_url)


def _make_room(target: Driver, attempt: AttemptName, restart: bool) -> None:
    """An empty folder for the copy."""
    try:
        entries = {entry.name for entry in target.list_dir(str(attempt))}
    except CheckpointNotFound:
        entries = set()
    if MANIFEST in entries:
        raise CheckpointExists(f"{attempt} is in {target.url} already; nothing was copied", url=target.url)
    if entries and not restart:
        raise CheckpointExists(
            f"{target.url} has an unfinished copy of {attempt}: if no other copy of it is running, begin again with "
            "--restart, which removes it first",
            url=target.url,
        )
    if entries:
        store.remove(target, attempt)
    target.make_dirs(str(attempt))


def copy_shard(source: Driver, target: Driver, path: str, shard: Shard, progress: Progress = no_progress) -> None:
    """Stream one file; a new one, which is dropped if what was read does not match the shard.

    Raises:
        CheckpointDamaged: if the original does not match its checksum.
    """
    writer = target.open_write(path)
    try:
        for chunk in stream(source, path, shard, progress):
            writer.write(chunk)
        writer.commit()
    except BaseException:
        writer.abort()
        raise


def stream(driver: Driver, path: str, shard: Shard, progress: Progress = no_progress) -> Iterator[memoryview]:
    """The bytes of a shard; each chunk is valid until the next one is asked for, and all are only after the last.

    Raises:
        CheckpointDamaged: at the end, if size or checksum differ; or if the file is missing.
    """
    try:
        reader = driver.open_read(path)
    except CheckpointNotFound as error:
        raise CheckpointDamaged(f"shard {shard.name} is missing", url=driver.url) from error
    size_bytes, seen = 0, xxhash.xxh3_128()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with closing(reader):
        while count := reader.readinto(buffer):
            seen.update(buffer[:count])
            size_bytes += count
            yield buffer[:count]
            progress(count)
    if size_bytes != shard.size_bytes:
        raise CheckpointDamaged(f"shard {shard.name} has {size_bytes} bytes, not {shard.size_bytes}", url=driver.url)
    if f"xxh3:{seen.hexdigest()}" != shard.checksum:
        raise CheckpointDamaged(f"shard {shard.name} does not match its checksum {shard.checksum}", url=driver.url)
