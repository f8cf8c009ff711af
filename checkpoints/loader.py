"""Loading: the newest checkpoint that passes every check, and what was passed over to reach it.

Invariant: nothing is returned that was not verified byte by byte. Damage leads to the next older checkpoint and is
reported; an outage is raised; "no checkpoint" is said only of a folder that was listed and has none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any, TypeVar

from checkpoints import store
from checkpoints.drivers import Driver, opened
from checkpoints.errors import CheckpointDamaged, CheckpointNotFound
from checkpoints.fleet import FileSystem, place
from checkpoints.layout import Manifest, Shard, parse_shard
from checkpoints.retention import Condition
from checkpoints.shard_reader import check_shard, read_shard
from checkpoints.store import CheckpointInfo, Examined, Skipped
from checkpoints.train_status import TrainStatus

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_TRIES = 3


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint in memory.

    Attributes:
        status: where the training stood.
        state: by name, what was saved; give each to the `load_state_dict` of its object.
        info: which checkpoint it is.
        skipped: newer ones that were passed over, newest first, each with its reason.
    """

    status: TrainStatus
    state: dict[str, Any]
    info: CheckpointInfo
    skipped: tuple[Skipped, ...]


def load_checkpoint(
    path: str | PathLike[str],
    *,
    trainer_id: int = 0,
    checkpoint_no: int | None = None,
    ignore_empty: bool = True,
    map_location: str = "cpu",
    driver: str | Driver | None = None,
    fs: FileSystem | None = None,
    hdfs_name: str | None = None,
    hdfs_ugi: str | None = None,
) -> LoadedCheckpoint | None:
    """Load the newest valid checkpoint, or one by its number. Names and arguments are those of Paddle EDL, where it had
    them; CheckpointManager.load puts it into live objects.

    Args:
        path: the checkpoint folder, a path or a URL.
        trainer_id: the rank, for messages; every rank may load.
        checkpoint_no: load this one and no other; None takes the newest that is valid.
        ignore_empty: False raises where there is no checkpoint.
        map_location: device for the tensors, such as "cpu" or "cuda:0".
        driver: which driver to use, by default the one of the URL's scheme.
        fs, hdfs_name, hdfs_ugi: as in `save_checkpoint`.

    Returns:
        The checkpoint, or None if the folder has none (a save that never finished does not count).

    Raises:
        CheckpointNotFound: if there is no checkpoint of that number, or none and not ignore_empty.
        CheckpointDamaged: if the one asked for is damaged, or if there are checkpoints and every one is.
        CheckpointUnavailable: if the file system cannot answer.
    """
    url, chosen = place(path, fs, hdfs_name, hdfs_ugi)
    with opened(url, driver or chosen) as source:
        found = settled(source, lambda: _load_newest(source, url, checkpoint_no, map_location))
    if found is None and not ignore_empty:
        raise CheckpointNotFound(f"trainer {trainer_id}: there is no checkpoint in {url}", url=url)
    return found


def _load_newest(driver: Driver, url: str, checkpoint_no: int | None, map_location: str) -> LoadedCheckpoint | None:
    skipped: list[Skipped] = []
    lost = False
    for examined in newest_first(driver, checkpoint_no):
        try:
            manifest, state = _load(driver, examined, map_location)
        except CheckpointDamaged as error:
            lost = lost or examined.condition is not Condition.UNFINISHED
            skipped.append(Skipped(str(examined.attempt), str(error)))
            logger.warning("checkpoint %s in %s is not used: %s", examined.attempt, url, error)
            continue
        return LoadedCheckpoint(manifest.status, state, examined.info(url), tuple(skipped))
    explain_nothing(url, checkpoint_no, skipped, lost)
    return None


def settled(driver: Driver, look: Callable[[], T | None]) -> T | None:
    """What look() finds; asked again while a saver that goes on collects what it had listed.

    Without this, a reader that is slower than two saves would take a folder with checkpoints for an empty one.
    """
    tries = 0
    while True:
        tries += 1
        listed = store.attempts(driver)
        try:
            found = look()
        except CheckpointDamaged:
            if tries == MOST_TRIES or store.attempts(driver) == listed:
                raise
            continue
        if found is not None or tries == MOST_TRIES or store.attempts(driver) == listed:
            return found


def explain_nothing(url: str, checkpoint_no: int | None, skipped: list[Skipped], lost: bool) -> None:
    """Raise if having found nothing is more than an empty folder."""
    reasons = "; ".join(f"{item.name}: {item.reason}" for item in skipped[:3])
    if checkpoint_no is not None:
        if skipped:
            raise CheckpointDamaged(f"checkpoint {checkpoint_no} in {url} cannot be used: {reasons}", url=url)
        raise CheckpointNotFound(f"there is no checkpoint {checkpoint_no} in {url}; `edl ckpt ls` shows them", url=url)
    if lost:
        raise CheckpointDamaged(
            f"none of the {len(skipped)} checkpoints in {url} can be used ({reasons}); "
            "to start over, choose an empty folder",
            url=url,
        )


def list_checkpoints(url: str | PathLike[str], *, driver: str | Driver | None = None) -> list[CheckpointInfo]:
    """Every attempt in the folder, newest first, each with its condition; sizes are compared, contents are not read.

    Raises:
        CheckpointUnavailable: if the file system cannot answer; an outage is never an empty list.
    """
    with opened(url, driver) as source:
        return [examined.info(fspath(url)) for examined in newest_first(source, None)]


def verify(url: str, *, checkpoint_no: int | None = None, driver: str | Driver | None = None) -> list[CheckpointInfo]:
    """As `list_checkpoints`, and every byte of every shard is read and compared with its checksum.

    Args:
        checkpoint_no: verify only the checkpoints of this number.

    Raises:
        CheckpointNotFound: if there is no checkpoint of that number.
        CheckpointUnavailable: if the file system cannot answer.
    """
    with opened(url, driver) as source:
        found = [_verified(source, examined).info(url) for examined in newest_first(source, checkpoint_no)]
    if checkpoint_no is not None and not found:
        explain_nothing(url, checkpoint_no, [], lost=False)
    return found


def newest_first(driver: Driver, checkpoint_no: int | None) -> Iterator[Examined]:
    """Attempts as they are examined, one after another; of one number, or all."""
    for attempt in store.attempts(driver):
        if checkpoint_no is None or attempt.number == checkpoint_no:
            yield store.examine(driver, attempt)


def _load(driver: Driver, examined: Examined, device: str) -> tuple[Manifest, dict[str, Any]]:
    manifest, shards = shards_of(examined)
    folder = examined.attempt
    return manifest, {
        name: read_shard(driver, f"{folder}/{shard.name}", shard, device) for name, shard in shards.items()
    }


def shards_of(examined: Examined) -> tuple[Manifest, dict[str, Shard]]:
    """The manifest of a valid checkpoint and its shards by the name of their state.

    Raises:
        CheckpointDamaged: if it is not valid, or in parts.
    """
    manifest = examined.manifest
    if manifest is None or examined.problem is not None:
        raise CheckpointDamaged(examined.problem or "no manifest")
    shards = {}
    for shard in manifest.shards:
        name = parse_shard(shard.name)
        if name is None or name.parts != 1:
            raise CheckpointDamaged(f"{shard.name} is a part of a sharded state, which this version does not read")
        shards[name.state] = shard
    return manifest, shards


def _verified(driver: Driver, examined: Examined) -> Examined:
    if examined.condition is not Condition.VALID or examined.manifest is None:
        return examined
    try:
        for shard in examined.manifest.shards:
            check_shard(driver, f"{examined.attempt}/{shard.name}", shard)
    except CheckpointDamaged as error:
        return replace(examined, condition=Condition.DAMAGED, problem=str(error))
    return examined
