"""Looking after a checkpoint folder by its URL: pin, unpin, collect. What `edl ckpt` is built on.

Invariant: as in retention; nothing is removed but what its rules let go.
"""

from __future__ import annotations

from dataclasses import dataclass

from checkpoints import store
from checkpoints.drivers import Driver, opened
from checkpoints.errors import CheckpointNotFound
from checkpoints.layout import AttemptName, parse_attempt
from checkpoints.retention import Collect, Keep, collectable, why_kept


def pin(url: str, checkpoint: int | str, *, driver: str | Driver | None = None) -> str:
    """Keep a valid checkpoint until it is unpinned; fine if it is pinned. Returns its name.

    Args:
        url: the checkpoint folder.
        checkpoint: its number, which means the newest of that number, or its name.

    Raises:
        CheckpointNotFound: if there is no such checkpoint.
        CheckpointDamaged: if it is not valid, or was collected at the same moment.
    """
    with opened(url, driver) as folder:
        attempt = find(folder, checkpoint)
        store.pin(folder, attempt)
    return str(attempt)


def unpin(url: str, checkpoint: int | str, *, driver: str | Driver | None = None) -> str:
    """Let a checkpoint be collected again; fine if it is not pinned. Returns its name.

    Raises:
        CheckpointNotFound: if there is no such checkpoint.
    """
    with opened(url, driver) as folder:
        attempt = find(folder, checkpoint)
        store.unpin(folder, attempt)
    return str(attempt)


def collect(url: str, keep: int | Keep, *, dry_run: bool = True, driver: str | Driver | None = None) -> list[Collect]:
    """Remove what the rules let go, and the remains of dead saves; oldest first.

    Args:
        url: the checkpoint folder.
        keep: how many of the newest stay, or the rules.
        dry_run: only tell what would go.

    Raises:
        CheckpointError: if the file system cannot answer or refuses.
    """
    rules = Keep(keep) if isinstance(keep, int) else keep
    with opened(url, driver) as folder:
        return store.plan(folder, rules) if dry_run else store.collect(folder, rules)


@dataclass(frozen=True)
class Judged:
    """What the rules say about one attempt, and why."""

    name: str
    removed: bool
    reason: str


def judge(url: str, keep: Keep, *, driver: str | Driver | None = None) -> list[Judged]:
    """What `collect` would do with each attempt, newest first; nothing is removed.

    Raises:
        CheckpointUnavailable: if the file system cannot answer.
    """
    with opened(url, driver) as folder:
        found = [store.examine(folder, attempt).found() for attempt in store.attempts(folder)]
    gone = {item.attempt: item.reason for item in collectable(found, keep)}
    kept = why_kept(found, keep)
    return [
        Judged(str(item.attempt), item.attempt in gone, gone.get(item.attempt) or kept[item.attempt]) for item in found
    ]


def find(driver: Driver, checkpoint: int | str) -> AttemptName:
    """The attempt of a name, or the newest one of a number.

    Raises:
        CheckpointNotFound: if there is none.
    """
    found = store.attempts(driver)
    if isinstance(checkpoint, str):
        wanted = parse_attempt(checkpoint)
        matches = [attempt for attempt in found if attempt == wanted]
    else:
        matches = [attempt for attempt in found if attempt.number == checkpoint]
    if not matches:
        raise CheckpointNotFound(
            f"there is no checkpoint {checkpoint} in {driver.url}; `edl ckpt ls` shows them", url=driver.url
        )
    return matches[0]
