"""How far a save is: for a callback, and as log lines when it takes long or the end of the process waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

TELL_EACH_S = 1.0
LOG_EACH_S = 10.0


@dataclass(frozen=True)
class Progress:
    """A save under way.

    Attributes:
        written_bytes: written until now; more than total_bytes by the headers, and when a file is written again.
        total_bytes: bytes of the state.
        seconds: since the writing began.
    """

    written_bytes: int
    total_bytes: int
    seconds: float

    @property
    def mb_s(self) -> float:
        """Megabytes (10^6 bytes) a second until now."""
        return self.written_bytes / 1e6 / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"{self.written_bytes / 1e6:.0f} of {self.total_bytes / 1e6:.0f} MB in {self.seconds:.1f} s "
            f"({self.mb_s:.0f} MB/s)"
        )


class ProgressLog:
    """Counts what one save writes and tells it about once a second; logs it each ten seconds."""

    def __init__(
        self, total_bytes: int, clock: Callable[[], float], tell: Callable[[Progress], None] | None = None
    ) -> None:
        self._total_bytes = total_bytes
        self._clock = clock
        self._tell = tell
        self._began_s = self._told_s = self._logged_s = clock()
        self._written_bytes = 0

    def wrote(self, size_bytes: int) -> None:
        """A chunk was written."""
        self._written_bytes += size_bytes
        now_s = self._clock()
        if self._tell is not None and now_s - self._told_s >= TELL_EACH_S:
            self._told_s = now_s
            self._told(self._progress(now_s))
        if now_s - self._logged_s >= LOG_EACH_S:
            self._logged_s = now_s
            if threading.main_thread().is_alive():
                logger.info("saving a checkpoint: %s", self._progress(now_s))
            else:
                logger.warning("the process ends when its checkpoint is saved: %s", self._progress(now_s))

    def done(self, name: str) -> None:
        """All is durable."""
        progress = self._progress(self._clock())
        logger.info("saved %s: %s", name, progress)
        self._told(progress)

    def _told(self, progress: Progress) -> None:
        try:
            if self._tell is not None:
                self._tell(progress)
        except Exception:
            logger.exception("on_progress raised; the checkpoint is not affected")
            self._tell = None

    def _progress(self, now_s: float) -> Progress:
        return Progress(self._written_bytes, self._total_bytes, now_s - self._began_s)
