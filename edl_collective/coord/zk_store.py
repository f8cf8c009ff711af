"""The store on a real ZooKeeper ensemble, through kazoo (server 3.5 or newer).

kazoo reconnects and opens a new session by itself; this class translates its exceptions and its session states and adds
nothing that has to be remembered, but whether the tree is closed: then each path that it creates has an owner
(coord.access). Operations are tried once: whoever loops looks again anyway. Only a look that waited for a server while
the session expired is taken again, in the new session: it was never sent.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from kazoo import exceptions as kazoo_errors
from kazoo.client import KazooClient
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.interfaces import IAsyncResult
from kazoo.protocol.states import KazooState, WatchedEvent
from kazoo.retry import KazooRetry
from kazoo.security import ACL, Id, Permissions

from edl_collective.coord.access import Access
from edl_collective.coord.errors import (
    AccessDenied,
    CoordError,
    Disconnected,
    Exists,
    NotEmpty,
    NotFound,
    OpenTree,
    VersionConflict,
)
from edl_collective.coord.store import Check, Create, Delete, Op, Session, Set, Versioned, Wake

logger = logging.getLogger(__name__)

_SESSIONS = {
    KazooState.CONNECTED: Session.CONNECTED,
    KazooState.SUSPENDED: Session.SUSPENDED,
    KazooState.LOST: Session.LOST,
}
_UNREACHABLE = (
    kazoo_errors.ConnectionLoss,
    kazoo_errors.ConnectionClosedError,
    kazoo_errors.SessionExpiredError,
    kazoo_errors.SessionMovedError,
    kazoo_errors.OperationTimeoutError,
    KazooTimeoutError,
)


#: between two tries to reach a server. kazoo's own pauses grow to a minute: a server that comes back after an outage
#: would expire the session of a client that is not there within the session time-out, and with it all its nodes.
LONGEST_RECONNECT_S = 1.0
RECONNECTS_PER_SESSION = 10


class ZkStore:
    """A session with the ensemble at `hosts` ("host:port,host:port").

    session_timeout_s: how long the ensemble keeps ephemeral paths of a client that is silent; the server bounds it.
    operation_timeout_s: how long one operation may take before it raises Disconnected.
    access: who this session is; None: anybody, who gets along with an open tree alone.
    """

    def __init__(
        self,
        hosts: str,
        *,
        session_timeout_s: float = 10.0,
        operation_timeout_s: float = 10.0,
        access: Access | None = None,
    ) -> None:
        self._hosts = hosts
        self._access = access
        #: the tree has owners
        self._closed = False
        self._operation_timeout_s = operation_timeout_s
        longest_s = min(LONGEST_RECONNECT_S, session_timeout_s / RECONNECTS_PER_SESSION)
        reconnect = KazooRetry(max_tries=-1, delay=longest_s / 4, max_delay=longest_s)
        self._client = KazooClient(
            hosts=hosts,
            timeout=session_timeout_s,
            connection_retry=reconnect,
            auth_data=[("digest", ":".join(user)) for user in access.passwords] if access else None,
        )
        self._listeners: list[Callable[[Session], None]] = []
        self._listeners_lock = threading.Lock()
        self._client.add_listener(self._session_changed)

    def start(self, timeout_s: float = 10.0) -> "ZkStore":
        """Connect. Raises Disconnected when no server answers within `timeout_s`, OpenTree and AccessDenied."""
        try:
            self._client.start(timeout=timeout_s)
        except KazooTimeoutError as error:
            self._client.stop()
            self._client.close()
            raise Disconnected(self._hosts, f"no answer within {timeout_s:g} s") from error
        if self._access is not None:
            try:
                self._closed = self._enter(self._access)
            except BaseException:
                self.close()
                raise
        return self

    def _enter(self, access: Access) -> bool:
        """Whether the tree is closed; close a new one if that is required. Raises OpenTree, AccessDenied."""
        while True:
            owners = self._owners(access.gate)
            if owners is None and access.required:
                for path in (access.paths.root, access.paths.services):
                    with suppress(Exists), self._translated(path):
                        self._finish(self._client.create_async(path, acl=_acl(access, path), makepath=True))
                continue  # somebody else may have been first
            if owners is not None and owners != _acl(access, access.gate):
                if access.required or not any(owner.id.scheme == "world" for owner in owners):
                    raise OpenTree(access.gate)
                return False
            return owners is not None

    def _owners(self, path: str) -> list[ACL] | None:
        """The ACL of `path`, None if it does not exist."""
        try:
            with self._translated(path):
                owners: list[ACL] = self._look(lambda: self._client.get_acls_async(path))[0]
        except NotFound:
            return None
        return owners

    def _acl_of(self, path: str) -> list[ACL] | None:
        """For a new path; None: open to everybody."""
        return _acl(self._access, path) if self._closed and self._access is not None else None

    @property
    def session(self) -> Session:
        return _SESSIONS[self._client.state]

    @property
    def session_id(self) -> int | None:
        client_id = self._client.client_id
        return client_id[0] if client_id and client_id[0] else None

    def get(self, path: str, wake: Wake | None = None) -> Versioned | None:
        try:
            with self._translated(path):
                data, stat = self._look(lambda: self._client.get_async(path, watch=_watcher(path, wake)))
        except NotFound:
            return None
        return Versioned(data, stat.version, stat.ephemeralOwner or None)

    def children(self, path: str, wake: Wake | None = None) -> list[str]:
        watch = _watcher(path, wake)
        while True:
            try:
                with self._translated(path):
                    return sorted(self._look(lambda: self._client.get_children_async(path, watch=watch)))
            except NotFound:
                with self._translated(path):
                    if watch is None or self._look(lambda: self._client.exists_async(path, watch=watch)) is None:
                        return []

    def create(self, path: str, data: bytes = b"", *, ephemeral: bool = False) -> None:
        with self._translated(path):
            self._finish(self._client.create_async(path, data, self._acl_of(path), ephemeral=ephemeral, makepath=True))

    def append(self, prefix: str, data: bytes) -> str:
        with self._translated(prefix):
            pending = self._client.create_async(prefix, data, self._acl_of(prefix), sequence=True, makepath=True)
            created: str = self._finish(pending)
        return created

    def set(self, path: str, data: bytes, version: int | None) -> int:
        if version is None:
            try:
                self.create(path, data)
            except Exists as error:
                raise VersionConflict(path) from error
            return 0
        with self._translated(path):
            stat = self._finish(self._client.set_async(path, data, version))
        return int(stat.version)

    def delete(self, path: str, version: int | None = None) -> None:
        try:
            with self._translated(path):
                self._finish(self._client.delete_async(path, -1 if version is None else version))
        except NotFound:
            return

    def transact(self, ops: Sequence[Op]) -> None:
        transaction = self._client.transaction()
        for op in ops:
            match op:
                case Create(path, data, ephemeral):
                    transaction.create(path, data, self._acl_of(path), ephemeral=ephemeral)
                case Set(path, data, version):
                    transaction.set_data(path, data, version)
                case Delete(path, version):
                    transaction.delete(path, version)
                case Check(path, version):
                    transaction.check(path, version)
        with self._translated(ops[0].path):
            results = self._finish(transaction.commit_async())
        for op, result in zip(ops, results, strict=True):
            # Operations around the one that failed carry RolledBack or RuntimeInconsistency.
            if isinstance(result, Exception) and not isinstance(
                result, kazoo_errors.RolledBackError | kazoo_errors.RuntimeInconsistency
            ):
                with self._translated(op.path):
                    raise result

    def on_session(self, listener: Callable[[Session], None]) -> Callable[[], None]:
        with self._listeners_lock:
            self._listeners.append(listener)

        def end() -> None:
            with self._listeners_lock:
                self._listeners.remove(listener)

        return end

    def close(self) -> None:
        self._client.stop()
        self._client.close()

    def _session_changed(self, state: str) -> None:
        logger.info("ZooKeeper session with %s is %s", self._hosts, state.lower())
        with self._listeners_lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener(_SESSIONS[state])

    def _look(self, ask: Callable[[], IAsyncResult]) -> Any:
        try:
            return self._finish(ask())
        except kazoo_errors.SessionExpiredError:
            return self._finish(ask())

    def _finish(self, pending: IAsyncResult) -> Any:
        return pending.get(timeout=self._operation_timeout_s)

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except kazoo_errors.NodeExistsError as error:
            raise Exists(path) from error
        except kazoo_errors.NoNodeError as error:
            raise NotFound(path) from error
        except kazoo_errors.NoAuthError as error:
            raise AccessDenied(path) from error
        except kazoo_errors.BadVersionError as error:
            raise VersionConflict(path) from error
        except kazoo_errors.NotEmptyError as error:
            raise NotEmpty(path) from error
        except _UNREACHABLE as error:
            raise Disconnected(self._hosts, type(error).__name__) from error
        except kazoo_errors.KazooException as error:
            raise CoordError(f"{path}: {type(error).__name__} {error}".rstrip()) from error


def _acl(access: Access, path: str) -> list[ACL]:
    return [ACL(Permissions.ALL, Id("digest", access.owner(path)))]


@dataclass(frozen=True, slots=True)
class _Watcher:
    """What kazoo calls; equal for the same wake and path, so that looking twice leaves one watch."""

    path: str
    wake: Wake

    def __call__(self, _event: WatchedEvent) -> None:
        self.wake(self.path)


def _watcher(path: str, wake: Wake | None) -> _Watcher | None:
    return None if wake is None else _Watcher(path, wake)
