"""The teachers of a student, followed in ZooKeeper; what the IO process asks when no teachers are fixed.

Invariants: the student's record is ephemeral, of this process's own session, and says which teachers it uses; which
these are follows from the records of the service alone (distill.balance). While ZooKeeper is away nothing changes: the
last teachers are used on, and the record is written again afterwards. A thread of its own talks to ZooKeeper; the
methods of a TeacherSource only exchange values with it. It asks no teacher anything.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Self

from msgspec import structs

from distill.balance import Share, balance
from distill.errors import ConfigError
from distill.io_settings import DynamicTeachers
from distill.listing import Listing, listings
from distill.records import MATERIAL, StudentRecord, TeacherRecord, settled
from distill.source import StudentReport, Teacher
from edl_collective.coord.clock import Clock, SystemClock
from edl_collective.coord.errors import CoordError, Exists, NotFound, VersionConflict
from edl_collective.coord.key_file import services_access
from edl_collective.coord.mirror import Mirror
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import encode
from edl_collective.coord.store import Create, Delete, Session, Store
from edl_collective.coord.zk_store import ZkStore

logger = logging.getLogger(__name__)

#: the listing has to be quiet for so long before a student that has teachers takes others, and not much longer than
#: the second if it never is: several students that answer the same change then read the same records
SETTLE_S, LONGEST_SETTLE_S = 0.1, 0.5
#: between two writes of the record, and between two when no more than figures changed, and these a little
WRITE_EVERY_S, FIGURES_EVERY_S = 1.0, 5.0
#: between two looks, and between two tries to reach ZooKeeper
LOOK_EVERY_S, RETRY_S = 0.02, 1.0
CONNECT_TIMEOUT_S = 5.0
#: silence after which the teachers are the other students'
SESSION_TIMEOUT_S = 10.0
#: for the thread to end; a store that does not answer must not keep the IO process
CLOSE_TIMEOUT_S = 2.0


class Discovery:
    """A TeacherSource on a service. `start` it, or call `step` in a test.

    open_store: makes and starts a store with a session of its own; called again as long as it raises Disconnected.
    wake: called from a thread when `teachers` or `why_none` may say something new.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        wanted: DynamicTeachers,
        *,
        wake: Callable[[], None],
        clock: Clock | None = None,
    ) -> None:
        service, student, most = wanted.service, wanted.student, wanted.max_teachers
        if most is not None and most < 1:
            raise ConfigError(f"max_teachers is {most}: it must be at least 1, or left open")
        try:
            self._paths = Paths(wanted.root)
            self._root, self._path = self._paths.service(service), self._paths.student(service, student)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._open_store = open_store
        self._service = service
        self._wake = wake
        self._clock = clock or SystemClock()
        self._record = StudentRecord(
            student=student,
            max_teachers=most,
            job=wanted.job,
            worker=wanted.worker,
            started_at=self._clock.wall_s(),
        )
        self._store: Store | None = None
        self._mirror: Mirror | None = None
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edl-discovery", daemon=True)
        self._listing = Listing()
        self._settling = _Settling()
        self._teachers: tuple[Teacher, ...] = ()
        self._why_none = f"service {service} has not been looked up yet"
        self._report: StudentReport | None = None
        self._written: StudentRecord | None = None
        self._written_s = 0.0

    # ---- for the IO process -------------------------------------------------------------------------------------

    def start(self) -> Self:
        self._thread.start()
        return self

    def teachers(self) -> tuple[Teacher, ...]:
        return self._teachers

    def why_none(self) -> str:
        return self._why_none

    def report(self, report: StudentReport) -> None:
        self._report = report
        self._woken.set()

    def close(self) -> None:
        """End the session: the record is gone at once, and the teachers are the other students'."""
        self._stopping.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
        if self._mirror is not None:
            self._mirror.close()
        if self._store is not None:
            self._store.close()

    # ---- the loop -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            wait_s = self.step()
            self._woken.wait(wait_s)
            self._stopping.wait(LOOK_EVERY_S)  # records that change together are looked at once

    def step(self) -> float | None:
        """Look, decide, write; returns after how many seconds to do it again, None: when something changes."""
        try:
            return self._step()
        except (VersionConflict, Exists, NotFound) as error:
            logger.debug("look again: %s", error)
            return LOOK_EVERY_S
        except CoordError as error:
            self._say_problem(str(error))
            return RETRY_S
        except Exception as error:  # the IO process goes on with what it has; a defect must not end in silence
            logger.exception("discovery of service %s failed", self._service)
            self._say_problem(f"discovery failed: {type(error).__name__}: {error}")
            return RETRY_S

    def _step(self) -> float | None:
        store, mirror = self._connected()
        if store.session is not Session.CONNECTED:
            self._say_problem("the connection to ZooKeeper is interrupted")
            return None
        now_s = self._clock.monotonic_s()
        self._listing = self._look(mirror)
        wait_s = self._settling.wait_s(self._listing, self._record, now_s)
        if wait_s <= 0 or not self._usable():
            self._adopt(self._decide())
            wait_s = 0.0
        self._show()
        waits = [wait_s] if wait_s > 0 else []
        due_s = self._write(store, now_s)
        return min([*waits, *([] if due_s is None else [due_s])], default=None)

    def _connected(self) -> tuple[Store, Mirror]:
        if self._store is None or self._mirror is None:
            self._store = self._open_store()
            self._mirror = Mirror(self._store, self._root, self._woken.set)
        return self._store, self._mirror

    def _look(self, mirror: Mirror) -> Listing:
        listing = listings(mirror.refresh(), self._paths).get(self._service, Listing())
        for problem in set(listing.problems) - set(self._listing.problems):
            logger.error("%s", problem)
        return listing

    # ---- which teachers -----------------------------------------------------------------------------------------

    def _usable(self) -> list[TeacherRecord]:
        """Those that this student uses and that still serve."""
        records = [self._listing.teachers.get(name) for name in self._record.teachers]
        return [record for record in records if record is not None and not record.draining]

    def _decide(self) -> Share:
        name = self._record.student
        students = {**self._listing.students, name: self._record}
        return balance(self._listing.teachers.values(), students.values())[name]

    def _adopt(self, share: Share) -> None:
        if (share.teachers, share.shared) == (self._record.teachers, self._record.shared):
            return
        come = [t for t in share.teachers if t not in self._record.teachers]
        go = [t for t in self._record.teachers if t not in share.teachers]
        logger.info("service %s: %d teachers, +%s -%s", self._service, len(share.teachers), come, go)
        self._record = structs.replace(self._record, teachers=share.teachers, shared=share.shared)

    def _show(self) -> None:
        """Hand over what is new."""
        teachers = tuple(map(_as_teacher, self._usable()))
        why = _why_none(self._service, self._listing)
        if _differs(teachers, self._teachers) or why != self._why_none:
            self._teachers, self._why_none = teachers, why
            self._wake()

    def _say_problem(self, text: str) -> None:
        if text != self._why_none:
            logger.warning("service %s: %s; the %d teachers stay", self._service, text, len(self._teachers))
            self._why_none = text
            self._wake()

    # ---- the student's record -----------------------------------------------------------------------------------

    def _write(self, store: Store, now_s: float) -> float | None:
        """Write the record if it is due; returns in how many seconds it will be, None if it says all."""
        if self._report is not None:
            new = structs.asdict(self._record) | {
                field: getattr(self._report, field) for field in self._report.__dataclass_fields__
            }
            demand = settled(self._report.demand, self._record.demand)
            self._record = StudentRecord(**{**new, "demand": demand})
        name = self._record.student
        there = self._listing.students.get(name)
        lost = there is None or self._written is None
        every_s = 0.0 if lost else WRITE_EVERY_S if _material(self._record, self._written) else FIGURES_EVERY_S
        if not lost and self._record == self._written:
            return None
        due_s = self._written_s + every_s - now_s
        if not lost and due_s > 0:
            return due_s
        self._put(store)
        self._written, self._written_s = self._record, now_s
        return None

    def _put(self, store: Store) -> None:
        """The record of a process before this one, whose session has not ended yet, is replaced."""
        data = encode(self._record, self._path)
        found = store.get(self._path)
        if found is None:
            store.create(self._path, data, ephemeral=True)
        elif found.owner == store.session_id:
            store.set(self._path, data, found.version)
        else:
            logger.warning("student %s was registered by another session: it is replaced", self._record.student)
            store.transact([Delete(self._path, found.version), Create(self._path, data, ephemeral=True)])


class _Settling:
    """How long to wait until the listing has been quiet."""

    def __init__(self) -> None:
        self._seen: object = None
        #: monotonic times of the first and the last change that no decision has answered
        self._first_s = self._last_s = 0.0
        self._open = False

    def wait_s(self, listing: Listing, own: StudentRecord, now_s: float) -> float:
        """Seconds until a decision may be taken; at most 0: now."""
        shape = (
            {(t.teacher, t.url, t.draining) for t in listing.teachers.values()},
            {(s.student, s.teachers, s.shared) for s in listing.students.values() if s.student != own.student},
        )
        if shape != self._seen:
            self._seen = shape
            self._first_s = self._first_s if self._open else now_s
            self._last_s = now_s
            self._open = True
        if not self._open:
            return 0.0
        wait_s = min(self._last_s + SETTLE_S, self._first_s + LONGEST_SETTLE_S) - now_s
        self._open = wait_s > 0
        return wait_s


def connect(wanted: DynamicTeachers, *, wake: Callable[[], None], environ: Mapping[str, str]) -> Discovery:
    """Follow the service in ZooKeeper; returns at once, the connection comes when it can.

    environ: where the services token or the cluster key is found, without which only an open tree lets a student in.
    Raises ConfigError for names that cannot be.
    """

    def open_store() -> Store:
        access = services_access(wanted.hosts, wanted.root, environ)
        return ZkStore(wanted.hosts, session_timeout_s=SESSION_TIMEOUT_S, access=access).start(CONNECT_TIMEOUT_S)

    return Discovery(open_store, wanted, wake=wake).start()


def _as_teacher(record: TeacherRecord) -> Teacher:
    return Teacher(record.teacher, record.url, record.model, record.model_hash, record.rate)


def _differs(new: tuple[Teacher, ...], old: tuple[Teacher, ...]) -> bool:
    """Rates are measured again all the time: only a material difference is one."""
    if len(new) != len(old):
        return True
    for a, b in zip(new, old, strict=True):
        if (a.teacher, a.url, a.model, a.model_hash) != (b.teacher, b.url, b.model, b.model_hash):
            return True
        if settled(a.rate, b.rate) != b.rate:
            return True
    return False


def _material(new: StudentRecord, old: StudentRecord | None) -> bool:
    if old is None:
        return True
    said = [(r.teachers, r.shared, r.waiting_for) for r in (new, old)]
    figures = new.demand != old.demand or settled(new.rate, old.rate) != old.rate
    return said[0] != said[1] or figures or abs(new.starved - old.starved) > MATERIAL


def _why_none(service: str, listing: Listing) -> str:
    draining = sum(record.draining for record in listing.teachers.values())
    if listing.teachers and draining < len(listing.teachers):
        return f"no teacher of service {service} is assigned yet"
    start = f"start one: edl teacher serve --service {service}, or list one: edl teacher register URL {service}"
    if draining:
        return f"all {draining} teachers of service {service} are draining; {start}"
    unread = f" ({len(listing.problems)} records cannot be read)" if listing.problems else ""
    return f"service {service} has no teachers{unread}; {start}"
