"""This node's ephemeral record: there while the JobClient's session is, and written again after a lost session.

Invariant: a record that another session owns is never touched; it vanishes when that session ends. The incarnation
stays the same for the life of the process, so a session lost and found again is not a new life of the node.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from msgspec.structs import replace

from edl_collective.coord.errors import CoordError, Exists, RecordError
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import NodeRecord, decode, encode
from edl_collective.coord.store import Session, Store

logger = logging.getLogger(__name__)

#: between two looks at a name that is taken, and after an operation that failed while the session lives
RETRY_S = 1.0


class Presence:
    """Registers `record` with `ensure` and keeps it registered in `keep`."""

    def __init__(self, store: Store, paths: Paths, record: NodeRecord, session_timeout_s: float) -> None:
        self._store = store
        self._path = paths.node(record.node)
        self._leader_path = paths.leader
        self._record = record
        self._session_timeout_s = session_timeout_s
        self._loop = asyncio.get_running_loop()
        self._look = asyncio.Event()
        self._end_listener: Callable[[], None] = store.on_session(self._session_changed)

    async def ensure(self) -> None:
        """Return when the record is there and ours. Raises Disconnected while ZooKeeper is away."""
        said = False
        while not await asyncio.to_thread(self._register):
            if not said:
                logger.warning("%s", await asyncio.to_thread(self._taken_text))
                said = True
            await self._wait(RETRY_S)

    async def keep(self) -> None:
        """Register again whenever the session was lost; ends only by cancellation."""
        while True:
            await self._look.wait()
            self._look.clear()
            if self._store.session is not Session.CONNECTED:
                continue
            try:
                await self.ensure()
            except CoordError as error:
                logger.warning("not registered yet: %s", error)
                await self._wait(RETRY_S)
                self._look.set()

    async def drain(self) -> bool:
        """Say that this node takes no more workers and those it has are to leave; False if nobody leads who decides so.

        Raises CoordError when ZooKeeper cannot be reached.
        """
        self._record = replace(self._record, draining=True)
        return await asyncio.to_thread(self._say_draining)

    async def resign(self) -> None:
        """Take the record away if it is ours, so that the node is gone now and not after the session time-out."""
        self._end_listener()
        try:
            await asyncio.to_thread(self._remove)
        except CoordError as error:
            logger.warning("left without signing off: %s", error)

    def _register(self) -> bool:
        """Whether the record is there and ours now."""
        data = encode(self._record, self._path)
        found = self._store.get(self._path, self._changed)
        if found is not None:
            return found.owner == self._store.session_id
        try:
            self._store.create(self._path, data, ephemeral=True)
        except Exists:
            return False
        logger.info("node %s is registered: %d slots", self._record.node, self._record.slots)
        return True

    def _say_draining(self) -> bool:
        found = self._store.get(self._path)
        if found is None or found.owner != self._store.session_id or self._store.get(self._leader_path) is None:
            return False
        self._store.set(self._path, encode(self._record, self._path), found.version)
        return True

    def _remove(self) -> None:
        found = self._store.get(self._path)
        if found is not None and found.owner == self._store.session_id:
            self._store.delete(self._path)

    def _taken_text(self) -> str:
        found = self._store.get(self._path)
        where = ""
        if found is not None:
            try:
                other = decode(found.data, NodeRecord, self._path)
                where = f" (at {other.address}:{other.port})"
            except RecordError as error:
                where = f" ({error})"
        return (
            f"node name {self._record.node} is held by another session{where}: if that JobClient was killed, "
            f"its session ends within {self._session_timeout_s:g} s and this one goes on; if it runs, "
            "give this one another --node"
        )

    def _changed(self, _path: str) -> None:
        call_soon(self._loop, self._look.set)

    def _session_changed(self, _session: Session) -> None:
        self._changed(self._path)

    async def _wait(self, timeout_s: float) -> None:
        """Until something changed, at most `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._look.wait()
            self._look.clear()
        except TimeoutError:
            pass


def call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """From a thread of the store, which may outlive the loop."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)
