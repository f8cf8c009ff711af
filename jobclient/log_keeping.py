"""Logs of ended workers leave by age and by the size of all together; those of what runs stay as they are.

Invariant: only files that a JobClient names so (<log_dir>/<job>/w12.log, driver.log, and .old of these) are ever
removed, none that is in use, and none that somebody wrote to within the last hour (another node may share the folder).
A log in use is not rotated: its worker writes to it directly, and readers count its bytes from the beginning.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edl_collective.coord.clock import Clock
from edl_collective.coord.paths import NAME_PATTERN
from jobclient.config import Config

logger = logging.getLogger(__name__)

#: between two looks at the folder
EVERY_S = 600.0
#: what was written to more recently stays
QUIET_S = 3600.0
_DAY_S = 86400.0
_LOG_NAME = re.compile(r"((?:w\d+|driver)\.log)(\.old)?")


@dataclass(frozen=True, slots=True)
class LogFile:
    """One log of a worker or driver."""

    path: Path
    size_bytes: int
    #: wall time of the last write
    written_at: float


def to_remove(
    files: Iterable[LogFile], in_use: Iterable[Path], now: float, keep_s: float, max_bytes: int
) -> list[LogFile]:
    """What has to go, oldest first. `now`: wall time; `keep_s` and `max_bytes`: 0 for no limit.

    Logs in use count towards `max_bytes`, so those that ended make room for them.
    """
    files, in_use = list(files), set(in_use)
    left_bytes = sum(file.size_bytes for file in files)
    gone = []
    for file in sorted(files, key=lambda file: (file.written_at, file.path)):
        age_s = now - file.written_at
        if file.path in in_use or age_s < QUIET_S:
            continue
        if (keep_s and age_s > keep_s) or (max_bytes and left_bytes > max_bytes):
            gone.append(file)
            left_bytes -= file.size_bytes
    return gone


def logs_in(log_dir: Path) -> Iterator[LogFile]:
    """The logs below `log_dir`, whatever else is there."""
    if not log_dir.is_dir():
        return
    for folder in log_dir.iterdir():
        if not re.fullmatch(NAME_PATTERN, folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if _LOG_NAME.fullmatch(path.name) and not path.is_symlink() and path.is_file():
                    stat = path.stat()
                    yield LogFile(path, stat.st_size, stat.st_mtime)


class LogKeeping:
    """Keeps `config.log_dir` within its limits while `keep` runs; `in_use` names the logs that must stay."""

    def __init__(self, config: Config, in_use: Callable[[], Sequence[Path]], clock: Clock) -> None:
        self._log_dir = config.log_dir
        self._keep_s = config.log_keep_days * _DAY_S
        self._max_bytes = config.log_max_bytes
        self._in_use = in_use
        self._clock = clock

    async def keep(self) -> None:
        """Look now and then; ends only by cancellation."""
        while self._keep_s or self._max_bytes:
            try:
                await asyncio.to_thread(self.sweep, self._in_use())
            except OSError as error:
                logger.warning("logs in %s are not cleared away: %s", self._log_dir, error)
            await asyncio.sleep(EVERY_S)

    def sweep(self, in_use: Sequence[Path]) -> None:
        """Remove what has to go, and the folders of jobs that this empties. Raises OSError."""
        gone = to_remove(logs_in(self._log_dir), in_use, self._clock.wall_s(), self._keep_s, self._max_bytes)
        for file in gone:
            file.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                file.path.parent.rmdir()
        if gone:
            size_mb = sum(file.size_bytes for file in gone) / 1e6
            logger.info(
                "removed %d logs of ended workers, %.1f MB (--log-keep-days, --log-max-bytes)", len(gone), size_mb
            )
