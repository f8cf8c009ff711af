"""A store in this process, for unit tests: the same contract as ZkStore, with sessions that tests can break.

Several MemoryStores on one MemoryTree are several sessions of one ensemble. Wakes run on the thread of the writer.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from edl_collective.coord.errors import Disconnected, Exists, NotEmpty, NotFound, PathError, VersionConflict
from edl_collective.coord.store import Check, Create, Delete, Op, Session, Set, Versioned, Wake


@dataclass
class MemoryTree:
    """The ensemble: values, and the watches left on them. `lock` guards all of it; wakes run outside of it."""

    values: dict[str, Versioned] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    data_watches: dict[str, set[Wake]] = field(default_factory=lambda: defaultdict(set))
    child_watches: dict[str, set[Wake]] = field(default_factory=lambda: defaultdict(set))
    _sessions: int = 0
    _sequence: int = 0

    def new_session(self) -> int:
        with self.lock:
            self._sessions += 1
            return self._sessions

    def next_number(self) -> int:
        with self.lock:
            self._sequence += 1
            return self._sequence - 1

    def names_below(self, path: str) -> list[str]:
        prefix = "/" if path == "/" else path + "/"
        return sorted(p[len(prefix) :] for p in self.values if p.startswith(prefix) and "/" not in p[len(prefix) :])

    @contextmanager
    def change(self) -> Iterator["_Change"]:
        """Apply a change under the lock, all or nothing, then wake those who watch what it touched."""
        change = _Change(self)
        with self.lock:
            before = dict(self.values)
            try:
                yield change
            except PathError:
                self.values = before
                raise
            woken = change.take_watches()
        for wake, path in woken:
            wake(path)


class _Change:
    """One change of a tree in progress; remembers whose watches it fires."""

    def __init__(self, tree: MemoryTree) -> None:
        self._tree = tree
        self._touched: list[str] = []
        self._parents: list[str] = []

    def create(self, path: str, data: bytes, owner: int | None) -> None:
        if path in self._tree.values:
            raise Exists(path)
        parent = _parent(path)
        if parent != "/" and parent not in self._tree.values:
            raise NotFound(parent)
        self._tree.values[path] = Versioned(data, 0, owner)
        self._touched.append(path)
        self._parents.append(parent)

    def create_parents(self, path: str) -> None:
        parts = path.strip("/").split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            parent = "/" + "/".join(parts[:depth])
            if parent not in self._tree.values:
                self.create(parent, b"", None)

    def set(self, path: str, data: bytes, version: int) -> int:
        old = self._at(path, version)
        self._tree.values[path] = Versioned(data, old.version + 1, old.owner)
        self._touched.append(path)
        return old.version + 1

    def delete(self, path: str, version: int | None) -> None:
        self._at(path, version)
        if self._tree.names_below(path):
            raise NotEmpty(path)
        del self._tree.values[path]
        self._touched.append(path)
        self._parents.append(_parent(path))

    def check(self, path: str, version: int) -> None:
        self._at(path, version)

    def take_watches(self) -> list[tuple[Wake, str]]:
        woken = [(wake, path) for path in self._touched for wake in self._tree.data_watches.pop(path, ())]
        return woken + [(wake, path) for path in self._parents for wake in self._tree.child_watches.pop(path, ())]

    def _at(self, path: str, version: int | None) -> Versioned:
        found = self._tree.values.get(path)
        if found is None:
            raise NotFound(path)
        if version is not None and version != found.version:
            raise VersionConflict(path)
        return found


class MemoryStore:
    """One session on a MemoryTree; `suspend`, `resume` and `expire` are the faults that a network makes."""

    def __init__(self, tree: MemoryTree | None = None) -> None:
        self._tree = tree or MemoryTree()
        self._session = Session.CONNECTED
        self._session_id: int | None = self._tree.new_session()
        self._listeners: list[Callable[[Session], None]] = []

    @property
    def session(self) -> Session:
        return self._session

    @property
    def session_id(self) -> int | None:
        return self._session_id

    def get(self, path: str, wake: Wake | None = None) -> Versioned | None:
        self._need_connection()
        with self._tree.lock:
            if wake is not None and path in self._tree.values:
                self._tree.data_watches[path].add(wake)
            return self._tree.values.get(path)

    def children(self, path: str, wake: Wake | None = None) -> list[str]:
        self._need_connection()
        with self._tree.lock:
            if wake is not None:
                #: a path that does not exist yet has no children to watch: watch for its creation
                watches = self._tree.child_watches if path in self._tree.values else self._tree.data_watches
                watches[path].add(wake)
            return self._tree.names_below(path)

    def create(self, path: str, data: bytes = b"", *, ephemeral: bool = False) -> None:
        self._need_connection()
        with self._tree.change() as change:
            change.create_parents(path)
            change.create(path, data, self._session_id if ephemeral else None)

    def append(self, prefix: str, data: bytes) -> str:
        path = f"{prefix}{self._tree.next_number():010d}"
        self.create(path, data)
        return path

    def set(self, path: str, data: bytes, version: int | None) -> int:
        self._need_connection()
        with self._tree.change() as change:
            if version is not None:
                return change.set(path, data, version)
            if path in self._tree.values:
                raise VersionConflict(path)
            change.create_parents(path)
            change.create(path, data, None)
        return 0

    def delete(self, path: str, version: int | None = None) -> None:
        self._need_connection()
        with self._tree.change() as change:
            if path not in self._tree.values:
                return
            change.delete(path, version)

    def transact(self, ops: Sequence[Op]) -> None:
        self._need_connection()
        with self._tree.change() as change:
            for op in ops:
                match op:
                    case Create(path, data, ephemeral):
                        change.create(path, data, self._session_id if ephemeral else None)
                    case Set(path, data, version):
                        change.set(path, data, version)
                    case Delete(path, version):
                        change.delete(path, version)
                    case Check(path, version):
                        change.check(path, version)

    def on_session(self, listener: Callable[[Session], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def close(self) -> None:
        if self._session_id is not None:
            self._drop_ephemerals()
        self._become(Session.LOST)

    def suspend(self) -> None:
        """The network is gone; the ensemble still holds the session."""
        self._become(Session.SUSPENDED)

    def resume(self) -> None:
        """The network is back: with the old session, or with a new one after `expire`."""
        if self._session_id is None:
            self._session_id = self._tree.new_session()
        self._become(Session.CONNECTED)

    def expire(self) -> None:
        """The ensemble gave the session up: its ephemeral paths are gone."""
        self._drop_ephemerals()
        self._session_id = None
        self._become(Session.LOST)

    def _drop_ephemerals(self) -> None:
        with self._tree.change() as change:
            owned = [path for path, value in self._tree.values.items() if value.owner == self._session_id]
            for path in owned:
                change.delete(path, None)

    def _become(self, session: Session) -> None:
        if session is self._session:
            return
        self._session = session
        for listener in list(self._listeners):
            listener(session)

    def _need_connection(self) -> None:
        if self._session is not Session.CONNECTED:
            raise Disconnected("memory", self._session.value)


def _parent(path: str) -> str:
    return path.rsplit("/", 1)[0] or "/"
