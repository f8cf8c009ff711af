"""The store protocol: the few ZooKeeper operations that EDL uses, as one small synchronous interface.

ZkStore talks to a real ensemble and MemoryStore lives in this process; both pass tests/contract/test_store.py.
A write carries the version that was read. A watch says "look again", never "this happened".
All methods may be called from any thread and raise Disconnected when the ensemble cannot be reached.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Versioned:
    """Bytes of a path with the version that a conditional write must name (0 is a real version)."""

    data: bytes
    version: int
    #: session that owns the path, None unless it is ephemeral; compare with Store.session_id
    owner: int | None = None


@dataclass(frozen=True, slots=True)
class Create:
    """Create `path` (its parent must exist inside a transaction); fails with Exists."""

    path: str
    data: bytes = b""
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class Set:
    """Write `path`; fails with VersionConflict unless it is at `version`."""

    path: str
    data: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Delete:
    path: str
    version: int


@dataclass(frozen=True, slots=True)
class Check:
    """Hold the transaction to `path` being at `version`."""

    path: str
    version: int


Op = Create | Set | Delete | Check


class Session(Enum):
    """State of the connection. SUSPENDED: stop acting as leader. LOST: ephemerals are gone, you are not the leader."""

    CONNECTED = "connected"
    SUSPENDED = "suspended"
    LOST = "lost"


#: A one-shot watch: called once with the path, from a thread of the store, when the answer may have become another or
#: the session changed. It must return at once; to go on watching, look again. Mirror does that for a whole subtree.
Wake = Callable[[str], None]


class Store(Protocol):
    """A tree of small versioned values with ephemeral paths, transactions and watches."""

    @property
    def session(self) -> Session: ...

    @property
    def session_id(self) -> int | None:
        """Identity of the current session, as Versioned.owner shows it; None while there is none."""

    def get(self, path: str, wake: Wake | None = None) -> Versioned | None:
        """Value of `path`, None if it does not exist; `wake` is left as a watch if it exists (see Wake)."""

    def children(self, path: str, wake: Wake | None = None) -> list[str]:
        """Sorted names below `path`, empty if it does not exist; `wake` watches them, or its creation."""

    def create(self, path: str, data: bytes = b"", *, ephemeral: bool = False) -> None:
        """Create `path` and missing (persistent, empty) parents. Raises Exists."""

    def append(self, prefix: str, data: bytes) -> str:
        """Create a persistent path named `prefix` plus an increasing number of ten digits; returns the path."""

    def set(self, path: str, data: bytes, version: int | None) -> int:
        """Write if `path` is at `version`; None means that it must not exist. Returns the new version.

        Raises VersionConflict (also when `version` is None and the path exists), NotFound.
        """

    def delete(self, path: str, version: int | None = None) -> None:
        """Delete `path`; a missing path is not an error. Raises VersionConflict, NotEmpty."""

    def transact(self, ops: Sequence[Op]) -> None:
        """Apply all or nothing. Raises the error of the first operation that fails."""

    def on_session(self, listener: Callable[[Session], None]) -> Callable[[], None]:
        """Call `listener(state)` on each change of session; returns a function that ends it."""

    def close(self) -> None:
        """End the session: ephemeral paths vanish now."""
