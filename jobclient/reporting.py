"""What the JobClient says of its node's workers, on its way to the store: records, progress, history.

Runs on the event loop and never blocks it; `publish` writes in a thread, as soon as the store can be reached. Progress
is written at most once per PROGRESS_PERIOD_S and job, its last state always.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from msgspec.structs import asdict

from edl_collective.coord.clock import Clock
from edl_collective.coord.errors import CoordError, Disconnected, RecordTooLarge
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import Event, Outcome, Progress, WorkerRecord
from edl_collective.coord.store import Store
from edl_collective.goodput import carry
from edl_collective.messages import Report
from jobclient.decide import Submission
from jobclient.outbox import Outbox

logger = logging.getLogger(__name__)

PROGRESS_PERIOD_S = 1.0
#: between two tries to write while ZooKeeper does not answer
RETRY_S = 1.0


Fields = Mapping[str, str | int | float | bool | None]


def resized_after_restart(
    kind: str, text: str, fields: Fields, before: Progress | None, now_s: float
) -> tuple[str, dict[str, str | int | float | bool | None]]:
    """Complete what a new process cannot know of a resize: the world that died, and how long nobody trained.

    Arguments: before, the last progress of the job; now_s, wall time, as Progress.last_step_at has it.
    """
    if kind != "resize" or fields.get("pause_s") is not None or before is None or not before.last_step_at:
        return text, dict(fields)
    pause_s = round(max(0.0, now_s - before.last_step_at), 2)
    cause, to = fields.get("cause", ""), fields.get("to")
    text = f"{before.world_size} -> {to} workers: {cause}, pause {pause_s:.2f} s"
    return text, {**fields, "from": before.world_size, "pause_s": pause_s}


@dataclass(slots=True)
class _LastProgress:
    """The newest report of a job; `timer` runs while it has not been handed to the outbox."""

    submitted_at: float
    record: Progress
    next_s: float = 0.0
    timer: asyncio.TimerHandle | None = None


class Reporting:
    def __init__(self, store: Store, paths: Paths, clock: Clock) -> None:
        self._outbox = Outbox(store, paths)
        self._paths = paths
        self._clock = clock
        self._progress: dict[str, _LastProgress] = {}
        self._earlier: dict[Submission, tuple[str, dict[str, float]]] = {}
        self._ready = asyncio.Event()
        #: how workers ended, since this JobClient began
        self.ends: Counter[Outcome] = Counter()
        self._flushing = asyncio.Lock()

    def worker(self, of: Submission, record: WorkerRecord) -> None:
        job, _ = of
        if record.outcome is not None:  # reported once: nothing changes after the end
            self.ends[record.outcome] += 1
        with self._noting(job, f"the record of {record.worker}"):
            self._outbox.put(of, self._paths.worker(job, record.worker), record)

    def waits(self, job: str, worker: str) -> bool:
        """Whether the newest record of the worker is still to be written."""
        return self._outbox.waits(self._paths.worker(job, worker))

    def event(self, of: Submission, kind: str, text: str, fields: Fields) -> None:
        """Append to the job's history."""
        with self._noting(of[0], f"an event of kind {kind}"):
            self._outbox.event(of, Event(at=self._clock.wall_s(), kind=kind, text=text, fields=dict(fields)))

    def report(self, of: Submission, report: Report, before: Progress | None) -> None:
        """Training progress as rank 0 sees it. `before`: the last that is stored, of whoever spoke then."""
        job, submitted_at = of
        record = Progress(**asdict(report), earlier=self._earlier_of(of, report, before))
        last = self._progress.setdefault(job, _LastProgress(submitted_at, record))
        last.submitted_at, last.record = submitted_at, record
        if last.timer is None:
            wait_s = max(0.0, last.next_s - self._clock.monotonic_s())
            last.timer = asyncio.get_running_loop().call_later(wait_s, self.flush_progress, job)

    def _earlier_of(self, of: Submission, report: Report, before: Progress | None) -> dict[str, float]:
        """What was spent before; looked up once for each process that speaks."""
        if report.spent is None:
            return {}
        by, earlier = self._earlier.get(of, ("", {}))
        if by != report.spent.by:
            earlier = carry(before, report.spent)
            self._earlier[of] = report.spent.by, earlier
        return earlier

    def flush_progress(self, job: str) -> None:
        """Hand the newest report on now, if that has not been done."""
        last = self._progress.get(job)
        if last is None or last.timer is None:
            return
        last.timer.cancel()
        last.timer = None
        last.next_s = self._clock.monotonic_s() + PROGRESS_PERIOD_S
        with self._noting(job, "a report"):
            self._outbox.put((job, last.submitted_at), self._paths.progress(job), last.record)

    def forget(self, job: str) -> None:
        """The job was removed: what still waits for it is dropped."""
        self._earlier = {of: found for of, found in self._earlier.items() if of[0] != job}
        last = self._progress.pop(job, None)
        if last is not None and last.timer is not None:
            last.timer.cancel()
        self._outbox.forget(job)

    @contextlib.contextmanager
    def _noting(self, job: str, what: str) -> Iterator[None]:
        """Publish what was put; what a script made too long for a record is refused and named in the log."""
        try:
            yield
        except RecordTooLarge as error:
            logger.error("job %s: %s is not kept: %s", job, what, error)
        self._ready.set()

    async def flush(self) -> None:
        """Write all that waits. Raises CoordError."""
        async with self._flushing:  # two writers would append an event twice
            await asyncio.to_thread(self._outbox.flush)

    async def publish(self) -> None:
        """Write what is ready, for ever."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            try:
                await self.flush()
            except CoordError as error:
                logger.log(
                    logging.DEBUG if isinstance(error, Disconnected) else logging.ERROR, "records wait: %s", error
                )
                await asyncio.sleep(RETRY_S)
                self._ready.set()

    async def last_flush(self, timeout_s: float) -> None:
        """Try once more to write everything, for at most `timeout_s`."""
        for job in list(self._progress):
            self.flush_progress(job)
        try:
            async with asyncio.timeout(timeout_s):
                await self.flush()
        except (TimeoutError, CoordError) as error:
            logger.warning("the last records did not reach ZooKeeper: %s", error or f"no answer in {timeout_s:g} s")
