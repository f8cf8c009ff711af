"""Verifying a whole folder: every byte of every shard, several files at a time; no torch is needed.

Invariant: an outage is raised, not told as damage. Each thread has a driver of its own, since few clients say that
theirs may be shared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from checkpoints import store
from checkpoints.drivers import Driver, open_driver, opened
from checkpoints.errors import CheckpointDamaged
from checkpoints.layout import AttemptName, Shard
from checkpoints.retention import Condition
from checkpoints.shard_reader import check_shard
from checkpoints.store import CheckpointInfo
from checkpoints.upkeep import find

#: Called with the bytes done since the last call and the bytes that there are in all; from several threads.
Progress = Callable[[int, int], None]


def verify_folder(
    url: str,
    checkpoint: int | str | None = None,
    *,
    jobs: int = 4,
    progress: Progress = lambda _done, _all: None,
    driver: str | None = None,
) -> list[CheckpointInfo]:
    """Every attempt in the folder, newest first, with what reading all of it found.

    Args:
        checkpoint: only the one of this name, or the newest of this number.
        jobs: files that are read at a time.
        progress: told of the bytes read.

    Raises:
        ValueError: if jobs is less than 1.
        CheckpointNotFound: if there is no such checkpoint.
        CheckpointUnavailable: if the file system cannot answer.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; it is {jobs}")
    with opened(url, driver) as folder:
        wanted = store.attempts(folder) if checkpoint is None else [find(folder, checkpoint)]
        found = [store.examine(folder, attempt) for attempt in wanted]
    files = [
        (item.attempt, shard)
        for item in found
        if item.condition is Condition.VALID and item.manifest is not None
        for shard in item.manifest.shards
    ]
    whole = sum(shard.size_bytes for _, shard in files)
    with _Checkers(url, driver, lambda done: progress(done, whole)) as checkers, ThreadPoolExecutor(jobs) as pool:
        try:
            problems = list(pool.map(checkers.problem, files))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    damage: dict[AttemptName, str] = {}
    for (attempt, _), problem in zip(files, problems, strict=True):
        if problem is not None:
            damage.setdefault(attempt, problem)
    return [
        (
            replace(item, condition=Condition.DAMAGED, problem=damage[item.attempt]) if item.attempt in damage else item
        ).info(url)
        for item in found
    ]


class _Checkers:
    """One driver for each thread that asks; leaving closes them."""

    def __init__(self, url: str, driver: str | None, progress: Callable[[int], None]) -> None:
        self._url = url
        self._driver = driver
        self._progress = progress
        self._mine = threading.local()
        self._all: list[Driver] = []

    def __enter__(self) -> _Checkers:
        return self

    def __exit__(self, *_: object) -> None:
        for driver in self._all:
            driver.close()

    def problem(self, file: tuple[AttemptName, Shard]) -> str | None:
        """What is wrong with one file; None if nothing is."""
        attempt, shard = file
        if not hasattr(self._mine, "driver"):
            self._mine.driver = open_driver(self._url, self._driver)
            self._all.append(self._mine.driver)
        try:
            check_shard(self._mine.driver, f"{attempt}/{shard.name}", shard, self._progress)
        except CheckpointDamaged as error:
            return str(error)
        return None
