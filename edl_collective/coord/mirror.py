"""A copy of a subtree of the store, kept by watches: a refresh reads again only what may have changed.

A path with data is a record and is not searched for children; a path without data is a container. After a Disconnected
nothing is forgotten: the next refresh reads what this one could not.
"""

import threading
from collections.abc import Callable, Mapping, Set
from types import MappingProxyType

from edl_collective.coord.store import Session, Store, Versioned


class Mirror:
    """The records at and below `root`; `wake` is called from a thread of the store when a refresh has work to do.

    but: paths that are left out, with all below them.
    """

    def __init__(self, store: Store, root: str, wake: Callable[[], None], but: Set[str] = frozenset()) -> None:
        self._store = store
        self._root = root
        self._wake = wake
        self._but = but
        self._lock = threading.Lock()
        self._dirty: set[str] = {root}
        self._values: dict[str, Versioned] = {}
        self._shown: Mapping[str, Versioned] = MappingProxyType({})
        #: containers and the paths directly below them
        self._children: dict[str, set[str]] = {}
        self._end_session_listener = store.on_session(self._session_changed)

    def refresh(self) -> Mapping[str, Versioned]:
        """All records by path, as they are now; the same mapping as before if nothing was touched since.

        Raises Disconnected. A mapping that was returned stays as it is.
        """
        with self._lock:
            pending, self._dirty = self._dirty, set()
        if not pending:
            return self._shown
        try:
            while pending:
                path = min(pending, key=len)
                pending |= self._look(path)
                pending.discard(path)
        except BaseException:
            with self._lock:
                self._dirty |= pending
            raise
        self._shown = MappingProxyType(dict(self._values))
        return self._shown

    def close(self) -> None:
        """Stop listening; watches that are still left fire into nothing."""
        self._end_session_listener()
        self._wake = _asleep

    def _look(self, path: str) -> set[str]:
        """Read `path` again; returns the children that were not known."""
        value = self._store.get(path, self._changed)
        if value is not None and value.data:
            self._forget_below(path)
            self._values[path] = value
            return set()
        if value is None and path != self._root:
            self._forget(path)
            return set()
        names = self._store.children(path, self._changed)
        if value is None and self._store.get(path, self._changed) is not None:
            return self._look(path)  # created since: its children are watched now, but not its data
        found = {f"{path}/{name}" for name in names} - self._but
        known = self._children.get(path, set())
        for gone in known - found:
            self._forget(gone)
        self._values.pop(path, None)
        self._children[path] = found
        return found - known

    def _forget(self, path: str) -> None:
        """Drop the subtree. Its parent forgets the name too: one that is created again has to be new to it."""
        self._values.pop(path, None)
        self._children.get(path.rsplit("/", 1)[0], set()).discard(path)
        self._forget_below(path)

    def _forget_below(self, path: str) -> None:
        for child in self._children.pop(path, set()):
            self._forget(child)

    def _changed(self, path: str) -> None:
        with self._lock:
            self._dirty.add(path)
        self._wake()

    def _session_changed(self, session: Session) -> None:
        # The watches of a session that was interrupted are gone: everything may have changed.
        if session is Session.CONNECTED:
            with self._lock:
                self._dirty |= {self._root, *self._values, *self._children}
        self._wake()


def _asleep() -> None:
    return None
