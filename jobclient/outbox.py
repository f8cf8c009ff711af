"""What a JobClient writes to the store: the newest record of each path, and events in order.

Records are levels: only the last one of a path matters, so nothing piles up while ZooKeeper is away. Events wait in a
bounded queue. Nothing is written below a job that was removed, nor below one of its name that was submitted later.
This process is the only writer of its records.
"""

import threading
from collections import deque
from dataclasses import dataclass

from edl_collective.coord.errors import NotFound, RecordError, VersionConflict
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import Event, JobSpec, Record, decode, encode
from edl_collective.coord.store import Store
from jobclient.decide import Submission

#: events that wait for ZooKeeper; beyond it the oldest are dropped and counted
MAX_WAITING_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class _Pending:
    of: Submission
    data: bytes


class Outbox:
    """Put from the event loop, flush from the thread that may block on the store."""

    def __init__(self, store: Store, paths: Paths) -> None:
        self._store = store
        self._paths = paths
        self._lock = threading.Lock()
        self._records: dict[str, _Pending] = {}
        self._events: deque[_Pending] = deque()
        #: paths that this process has written, with the version left behind, and of which submission
        self._versions: dict[str, tuple[float, int]] = {}

    def put(self, of: Submission, path: str, record: Record) -> None:
        """Replace what is to be written at `path`. Raises RecordTooLarge."""
        with self._lock:
            self._records[path] = _Pending(of, encode(record, path))

    def event(self, of: Submission, event: Event) -> None:
        """Append to the job's history. Raises RecordTooLarge."""
        with self._lock:
            if len(self._events) == MAX_WAITING_EVENTS:
                self._events.popleft()
            self._events.append(_Pending(of, encode(event)))

    def waits(self, path: str) -> bool:
        """Whether something is still to be written at `path`."""
        with self._lock:
            return path in self._records

    @property
    def empty(self) -> bool:
        with self._lock:
            return not self._records and not self._events

    def flush(self) -> None:
        """Write all that waits. Raises Disconnected, keeping what was not written."""
        while (item := self._next_record()) is not None:
            path, pending = item
            if self._written(path, pending):
                with self._lock:
                    if self._records.get(path) is pending:
                        del self._records[path]
        while True:
            with self._lock:
                event = self._events[0] if self._events else None
            if event is None:
                return
            self._append(event)
            with self._lock:
                if self._events and self._events[0] is event:
                    self._events.popleft()

    def forget(self, job: str) -> None:
        """The job is gone: drop what waits for it."""
        below = self._paths.job(job) + "/"
        with self._lock:
            self._records = {p: r for p, r in self._records.items() if not p.startswith(below)}
            self._events = deque(e for e in self._events if e.of[0] != job)
            self._versions = {p: v for p, v in self._versions.items() if not p.startswith(below)}

    def _next_record(self) -> tuple[str, _Pending] | None:
        with self._lock:
            return next(iter(self._records.items()), None)

    def _written(self, path: str, pending: _Pending) -> bool:
        """Whether the record needs no further try."""
        _, submitted_at = pending.of
        if not self._stands(pending.of):
            self._versions.pop(path, None)  # nothing of it is to come back
            return True
        of, version = self._versions.get(path, (submitted_at, None))
        try:
            left = self._store.set(path, pending.data, version if of == submitted_at else None)
            self._versions[path] = submitted_at, left
        except NotFound:
            self._versions.pop(path, None)  # it was removed, or the job in this moment
        except VersionConflict:
            # It was there before us, or a write whose answer was lost did happen: go on from what is there.
            found = self._store.get(path)
            if found is not None:
                self._versions[path] = submitted_at, found.version
            return False
        return True

    def _append(self, event: _Pending) -> None:
        if self._stands(event.of):
            self._store.append(self._paths.event_prefix(event.of[0]), event.data)

    def _stands(self, of: Submission) -> bool:
        """Whether the job is still there, and this one. A spec that does not parse is taken for it."""
        job, submitted_at = of
        path = self._paths.spec(job)
        found = self._store.get(path)
        if found is None:
            return False
        try:
            return decode(found.data, JobSpec, path).submitted_at == submitted_at
        except RecordError:
            return True  # the snapshot says what is wrong with it
