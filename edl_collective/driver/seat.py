"""The driver's seat in the store: its epoch, its address, the record that it alone may write, and what it reads.

Invariant: whoever takes the seat raises the epoch in the rendezvous record first, so that the compare-and-set of every
earlier driver fails from then on. All methods block and are called from one thread of the driver.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from edl_collective.coord.errors import Exists, NotFound, RecordError, VersionConflict
from edl_collective.coord.mirror import Mirror
from edl_collective.coord.paths import Paths
from edl_collective.coord.record import R
from edl_collective.coord.records import DriverRecord, JobSpec, JobStatus, NodeRecord, Plan, Rendezvous, decode, encode
from edl_collective.coord.store import Create, Delete, Store

logger = logging.getLogger(__name__)

_TRIES = 10


class SeatError(Exception):
    """Base of what ends a driver that has done nothing wrong."""


class Replaced(SeatError):
    """Raised when a driver with a higher epoch has taken the seat."""


class JobGone(SeatError):
    """Raised when there is nothing left to drive: the job has ended or was deleted."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store says; `plan` is None before the first."""

    plan: Plan | None
    #: live nodes and their incarnations; "?" for a node whose record does not parse
    nodes: dict[str, str]
    min_np: int


class Seat:
    """One driver's access to the records of `job`; `wake` is called from a thread of the store when facts changed."""

    def __init__(self, store: Store, paths: Paths, job: str, wake: Callable[[], None]) -> None:
        self._store, self._paths, self._job = store, paths, job
        self._mirrors = {
            path: Mirror(store, path, wake)
            for path in (
                paths.spec(job),
                paths.plan(job),
                paths.status(job),
                paths.driver(job),
                paths.rendezvous(job),
                paths.nodes,
            )
        }
        self._address: DriverRecord | None = None
        #: of the job that it drives, from the first look on
        self._submitted_at: float | None = None
        self.epoch = 0

    def take(self) -> tuple[Rendezvous, int]:
        """Take the seat: the record with an epoch of our own, and its version. Raises Disconnected, JobGone."""
        path = self._paths.rendezvous(self._job)
        if self._store.get(self._paths.spec(self._job)) is None:
            raise JobGone(f"job {self._job} does not exist")
        for _ in range(_TRIES):
            found = self._store.get(path)
            before = decode(found.data, Rendezvous, path) if found else Rendezvous.EMPTY
            record = msgspec.structs.replace(before, epoch=before.epoch + 1)
            try:
                version = self._store.set(path, encode(record, path), found.version if found else None)
            except VersionConflict:
                continue  # another driver starts at this moment: the later one leads
            self.epoch = record.epoch
            return record, version
        raise Replaced(f"{_TRIES} other drivers started at the same time")

    def publish(self, address: DriverRecord) -> None:
        """Say where this driver listens, in place of an earlier one's address. Raises Replaced, Disconnected."""
        self._address = address
        path = self._paths.driver(self._job)
        data = encode(address, path)
        for _ in range(_TRIES):
            found = self._store.get(path)
            if found is not None and found.data == data and found.owner == self._store.session_id:
                return
            if found is not None and decode(found.data, DriverRecord, path).epoch > self.epoch:
                raise Replaced(f"a driver with a higher epoch than {self.epoch} has published its address")
            try:
                if found is None:
                    self._store.create(path, data, ephemeral=True)
                else:
                    self._store.transact([Delete(path, found.version), Create(path, data, ephemeral=True)])
                return
            except (Exists, NotFound, VersionConflict):
                continue
        raise Replaced("another driver keeps publishing its address")

    def write(self, record: Rendezvous, version: int) -> int:
        """Compare-and-set; the new version. Raises VersionConflict, Disconnected.

        After a Disconnected it may be called again with the same arguments: a write that had happened is recognised.
        """
        path = self._paths.rendezvous(self._job)
        data = encode(record, path)
        try:
            return self._store.set(path, data, version)
        except VersionConflict:
            found = self._store.get(path)
            if found is not None and found.version == version + 1 and found.data == data:
                return found.version
            raise

    def look(self) -> Facts:
        """Read what has changed. Raises Replaced, JobGone, Disconnected."""
        plan = self._read(self._paths.plan(self._job), Plan)
        spec = self._read(self._paths.spec(self._job), JobSpec)
        status = self._read(self._paths.status(self._job), JobStatus)
        record = self._read(self._paths.rendezvous(self._job), Rendezvous)
        if spec is None or record is None:
            raise JobGone(f"job {self._job} was deleted")
        if self._submitted_at is None:
            self._submitted_at = spec.submitted_at
        if spec.submitted_at != self._submitted_at:
            raise JobGone(f"job {self._job} was deleted, and another of that name submitted")
        if status is not None and status.phase.terminal:
            raise JobGone(f"job {self._job} has {status.phase}")
        if record.epoch > self.epoch:
            raise Replaced(f"a driver with epoch {record.epoch} has taken the seat of epoch {self.epoch}")
        self._keep_published()
        return Facts(plan, self._nodes(), spec.min_np)

    def close(self) -> None:
        for mirror in self._mirrors.values():
            mirror.close()

    def _keep_published(self) -> None:
        """Our address vanishes with our session: say it again in the next one."""
        path = self._paths.driver(self._job)
        found = self._mirrors[path].refresh().get(path)
        if self._address is not None and (found is None or found.owner != self._store.session_id):
            self.publish(self._address)

    def _read(self, path: str, record_type: type[R]) -> R | None:
        found = self._mirrors[path].refresh().get(path)
        return None if found is None else decode(found.data, record_type, path)

    def _nodes(self) -> dict[str, str]:
        nodes: dict[str, str] = {}
        for path, value in self._mirrors[self._paths.nodes].refresh().items():
            key = self._paths.parse(path)
            if key is None or key.kind != "node" or key.node is None:
                continue
            try:
                nodes[key.node] = decode(value.data, NodeRecord, path).incarnation
            except RecordError as error:
                logger.error("job %s: %s", self._job, error)
                nodes[key.node] = "?"
        return nodes
