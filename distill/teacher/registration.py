"""A teacher's place in ZooKeeper, kept by the process that infers: a frozen teacher loses it with its session.

Level-triggered: every look compares what is there with what should be there. Invariants: nothing is listed before an
inference has succeeded; one write a second at most; a path that another session holds is left alone until it is gone.
"""

import logging
import threading
from collections.abc import Callable

from distill.records import TeacherRecord
from edl_collective.coord.errors import CoordError, Exists, NotFound, VersionConflict
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import encode
from edl_collective.coord.store import Session, Store

logger = logging.getLogger(__name__)

#: between two looks, and so between two writes
LOOK_S = 1.0

#: what should be listed now; None: nothing
Wanted = Callable[[], TeacherRecord | None]


class Registration:
    """Keeps what `wanted` says at the teacher's path, as an ephemeral of `store`'s session."""

    def __init__(self, store: Store, paths: Paths, service: str, teacher: str, wanted: Wanted) -> None:
        self._store = store
        self._path = paths.teacher(service, teacher)
        self._wanted = wanted
        self._problem: str | None = None
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="registration", daemon=True)
        self._end_listening = store.on_session(self._session_changed)

    def start(self) -> None:
        """Look from now on, on a thread of its own."""
        self._thread.start()

    def wake(self) -> None:
        """Look now: what should be listed has changed, as when the teacher leaves."""
        self._wake.set()

    def close(self) -> None:
        """Take the record away, unless the store is not there; then it ends with the session."""
        self._ended = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._end_listening()
        self._look_safely(None)

    def look(self, record: TeacherRecord | None) -> str | None:
        """Make the path hold `record`; why it does not, if another session holds it. Raises CoordError."""
        there = self._store.get(self._path)
        if there is not None and there.owner != self._store.session_id:
            # A process of the same name that was killed: its session has to end first.
            return f"{self._path} is held by another session: another teacher of this name, or one that has just died"
        if record is None:
            if there is not None:
                self._store.delete(self._path, there.version)
            return None
        data = encode(record)
        if there is None:
            self._store.create(self._path, data, ephemeral=True)
        elif there.data != data:
            self._store.set(self._path, data, there.version)
        return None

    def _run(self) -> None:
        while not self._ended:
            self._wake.clear()
            self._look_safely(self._wanted())
            if not self._ended:
                self._wake.wait(LOOK_S)

    def _look_safely(self, record: TeacherRecord | None) -> None:
        try:
            problem = self.look(record)
        except (Exists, NotFound, VersionConflict) as error:
            problem = f"{error}; looking again"
        except CoordError as error:
            problem = str(error)
        if problem != self._problem:
            self._problem = problem
            logger.log(
                logging.INFO if problem is None else logging.WARNING, "listing: %s", problem or "as it should be"
            )

    def _session_changed(self, session: Session) -> None:
        if session is Session.CONNECTED:
            self._wake.set()
