"""What a JobClient writes to the store: the newest record of each path, and events in order.

Records are levels: only the last one of a path matters, so nothing piles up while ZooKeeper is away. Events wait in a
bounded queue. Nothing is written below a job that was removed. This process is the only writer of its records.
"""

import threading
from collections import deque
from dataclasses import dataclass

from edl_collective.coord.errors import NotFound, VersionConflict
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import Event, Record, encode
from edl_collective.coord.store import Store

#: events that wait for ZooKeeper; beyond it the oldest are dropped and counted
MAX_WAITING_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class _Pending:
    job: str
    data: bytes


class Outbox:
    """Put from the event loop, flush from the thread that may block on the store."""

    def __init__(self, store: Store, paths: Paths) -> None:
        self._store = store
        self._paths = paths
        self._lock = threading.Lock()
        self._records: dict[str, _Pending] = {}
        self._events: deque[_Pending] = deque()
        #: paths that this process has written, with the version left behind
        self._versions: dict[str, int] = {}
        self.dropped_events = 0

    def put(self, job: str, path: str, record: Record) -> None:
        """Replace what is to be written at `path`. Raises RecordTooLarge."""
        with self._lock:
            self._records[path] = _Pending(job, encode(record, path))

    def event(self, job: str, event: Event) -> None:
        """Append to the job's history. Raises RecordTooLarge."""
        with self._lock:
            if len(self._events) == MAX_WAITING_EVENTS:
                self._events.popleft()
                self.dropped_events += 1
            self._events.append(_Pending(job, encode(event)))

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
            self._events = deque(e for e in self._events if e.job != job)
            self._versions = {p: v for p, v in self._versions.items() if not p.startswith(below)}

    def _next_record(self) -> tuple[str, _Pending] | None:
        with self._lock:
            return next(iter(self._records.items()), None)

    def _written(self, path: str, pending: _Pending) -> bool:
        """Whether the record needs no further try."""
        version = self._versions.get(path)
        try:
            if version is None:
                self._create(path, pending)
            else:
                self._versions[path] = self._store.set(path, pending.data, version)
        except NotFound:
            self._versions.pop(path, None)  # the job was removed: nothing of it is to come back
        except VersionConflict:
            # It was there before us, or a write whose answer was lost did happen: go on from what is there.
            found = self._store.get(path)
            if found is not None:
                self._versions[path] = found.version
            return False
        return True

    def _create(self, path: str, pending: _Pending) -> None:
        """Raises NotFound if the job does not exist, VersionConflict if the record does."""
        if self._store.get(self._paths.spec(pending.job)) is None:
            raise NotFound(self._paths.job(pending.job))
        self._versions[path] = self._store.set(path, pending.data, None)

    def _append(self, event: _Pending) -> None:
        if self._store.get(self._paths.spec(event.job)) is not None:
            self._store.append(self._paths.event_prefix(event.job), event.data)
