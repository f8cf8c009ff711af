"""Who leads, and the fence that stops a leader who does not know yet that it was replaced.

One transaction creates the ephemeral holder and raises the epoch; every write of a leader carries a check that the
epoch is still its own. So a leader that was suspended, or stood still, cannot write after its successor began.
"""

import logging
import os
import threading

from edl_collective.coord.errors import Exists, NotFound, NotLeader, VersionConflict
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import LeaderRecord, decode, encode
from edl_collective.coord.store import Check, Create, Delete, Op, Session, Set, Store

logger = logging.getLogger(__name__)


class Leadership:
    """The candidacy of one server. All methods are called from one thread; only session changes come from another."""

    def __init__(self, store: Store, paths: Paths, server: str, api_url: str) -> None:
        self._store = store
        self._paths = paths
        self._server = server
        self._api_url = api_url
        self._lock = threading.Lock()
        self._epoch: int | None = None
        self._fence_version = 0
        #: session changes seen so far; the epoch holds only while no change came since `_confirmed_at`
        self._changes = 0
        self._confirmed_at: int | None = None
        self._looked = False
        self._end_session_listener = store.on_session(self._session_changed)

    @property
    def epoch(self) -> int | None:
        """Epoch in which this server leads; None while it does not, or while it cannot know."""
        with self._lock:
            return self._epoch if self._confirmed_at == self._changes else None

    def try_lead(self, dead: LeaderRecord | None = None) -> int | None:
        """Become or stay the leader if possible; the epoch, or None while another server leads. Raises Disconnected.

        dead: a leader whose process is known to have died, so that the end of its session need not be awaited. A
        mistake costs a change of the lead and nothing else: the epoch fences whoever is replaced.
        """
        epoch = self.epoch
        if epoch is not None:
            return epoch
        changes = self._changes
        holder = self._store.get(self._paths.leader)
        first_look, self._looked = not self._looked, True
        if holder is None:
            return self._take(changes, [])
        record = decode(holder.data, LeaderRecord, self._paths.leader)
        if holder.owner == self._store.session_id:
            return self._confirm(record.epoch, changes)
        if record == dead or (first_look and self._is_predecessor(record)):
            logger.info("%s takes the place of %s, which died in epoch %d", self._server, record.server, record.epoch)
            return self._take(changes, [Delete(self._paths.leader, holder.version)])
        self._lose()
        return None

    def _is_predecessor(self, record: LeaderRecord) -> bool:
        """Whether we listen where that one listened, which only one process can.

        To be asked once: two servers that are both reached at 127.0.0.1, each on its machine, would go on for ever.
        """
        return (record.server, record.api_url) == (self._server, self._api_url)

    def doubt(self) -> None:
        """A fenced write was refused: ask the store again before the next one."""
        self._lose()

    def fence(self) -> Check:
        """The operation to put in front of every transaction of the leader. Raises NotLeader."""
        epoch = self.epoch
        if epoch is None:
            raise NotLeader(self._epoch or 0)
        return Check(self._paths.leader_epoch, self._fence_version)

    def resign(self) -> None:
        """Let another server lead at once."""
        holder = self._store.get(self._paths.leader)
        if holder is not None and holder.owner == self._store.session_id:
            self._store.delete(self._paths.leader)
        self._lose()
        self._end_session_listener()

    def _take(self, changes: int, first: list[Op]) -> int | None:
        path = self._paths.leader_epoch
        current = self._store.get(path)
        if current is None:
            self._store.set(path, b"0", None)
            return self._take(changes, first)
        epoch = int(current.data) + 1
        record = LeaderRecord(server=self._server, api_url=self._api_url, epoch=epoch, pid=os.getpid())
        try:
            self._store.transact(
                [
                    *first,
                    Create(self._paths.leader, encode(record, self._paths.leader), ephemeral=True),
                    Set(path, str(epoch).encode(), current.version),
                ]
            )
        except (Exists, NotFound, VersionConflict):
            logger.info("another JobServer took the lead before %s", self._server)
            return None
        return self._confirm(epoch, changes)

    def _confirm(self, epoch: int, changes: int) -> int | None:
        current = self._store.get(self._paths.leader_epoch)
        if current is None or int(current.data) != epoch:
            self._lose()
            return None
        with self._lock:
            if self._epoch != epoch:
                logger.info("%s leads in epoch %d", self._server, epoch)
            self._epoch, self._fence_version, self._confirmed_at = epoch, current.version, changes
        return epoch

    def _lose(self) -> None:
        with self._lock:
            self._epoch = self._confirmed_at = None

    def _session_changed(self, session: Session) -> None:
        with self._lock:
            self._changes += 1
            if session is Session.LOST:
                self._epoch = None
