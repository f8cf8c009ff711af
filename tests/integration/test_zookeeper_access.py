"""Strangers at a real ZooKeeper: what a session without the key, or with a student's token, may do to a closed tree."""

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kazoo import exceptions as kazoo_errors
from kazoo.client import KazooClient
from kazoo.security import ACL, OPEN_ACL_UNSAFE, Id, Permissions

from edl_collective.coord.access import Access, off_loopback
from edl_collective.coord.auth import SERVICES_TOKEN_VARIABLE, ClusterKey
from edl_collective.coord.errors import AccessDenied, OpenTree
from edl_collective.coord.key_file import load_or_create_key, services_access
from edl_collective.coord.paths import Paths
from edl_collective.coord.store import Create, Set
from edl_collective.coord.zk_store import ZkStore

pytestmark = pytest.mark.integration

KEY = ClusterKey(b"a key for tests, thirty-two byte")
OTHER = ClusterKey(b"another key, thirty-two bytes to")


class Place:
    """A root of its own on a real server, and sessions there."""

    def __init__(self, hosts: str) -> None:
        self.hosts = hosts
        self.paths = Paths(f"/access-{uuid.uuid4().hex[:8]}")
        self._open: list[ZkStore] = []
        self.raw = KazooClient(hosts)
        self.raw.start(10)

    def enter(self, access: Access | None) -> ZkStore:
        store = ZkStore(self.hosts, session_timeout_s=4, access=access).start()
        self._open.append(store)
        return store

    def with_key(self, key: ClusterKey = KEY, *, required: bool = True) -> ZkStore:
        return self.enter(Access.of_key(key, self.paths, required=required))

    def all_paths(self) -> list[str]:
        found, rest = [], [self.paths.root]
        reader = KazooClient(self.hosts, auth_data=[("digest", f"edl:{KEY.control_token}")])
        reader.add_auth_async("digest", f"edl-services:{KEY.services_token}")
        reader.start(10)
        while rest:
            found.append(rest.pop())
            rest += [f"{found[-1]}/{name}" for name in reader.get_children(found[-1])]
        reader.stop()
        reader.close()
        return found

    def close(self) -> None:
        for store in self._open:
            store.close()
        self.raw.stop()
        self.raw.close()


@pytest.fixture
def place(zookeeper: str) -> Iterator[Place]:
    found = Place(zookeeper)
    yield found
    found.close()


def fill(place: Place, store: ZkStore) -> None:
    """Paths made in each way there is."""
    paths = place.paths
    store.create(paths.spec("j"), b"secret")
    store.create(paths.node("a"), b"secret", ephemeral=True)
    store.append(paths.event_prefix("j"), b"secret")
    store.transact([Create(paths.plan("j"), b"secret"), Create(paths.worker("j", "w1")[:-3], b"")])
    store.set(paths.status("j"), b"secret", None)
    store.create(paths.teacher("s", "t"), b"secret", ephemeral=True)


def test_a_stranger_neither_reads_nor_changes_anything(place: Place) -> None:
    fill(place, place.with_key())
    raw, denied = place.raw, kazoo_errors.NoAuthError
    everything = place.all_paths()
    assert len(everything) >= 12
    attempts: list[Callable[[str], object]] = [
        raw.get,
        raw.get_children,
        raw.get_acls,
        lambda path: raw.set(path, b"mine"),
        lambda path: raw.create(f"{path}/mine", b"", acl=OPEN_ACL_UNSAFE),
        lambda path: raw.set_acls(path, OPEN_ACL_UNSAFE),
    ]
    for path in everything:
        for attempt in attempts:
            with pytest.raises(denied):
                attempt(path)
    for path in everything[1:]:
        with pytest.raises((denied, kazoo_errors.NotEmptyError)):
            raw.delete(path)
        transaction = raw.transaction()
        transaction.set_data(path, b"mine")
        assert isinstance(transaction.commit()[0], denied)
    with pytest.raises(kazoo_errors.NotEmptyError):
        raw.delete(place.paths.root)
    assert place.all_paths() == everything


def test_another_key_is_told_so(place: Place) -> None:
    place.with_key()
    for required in (True, False):
        with pytest.raises(AccessDenied, match=r"another cluster key.*--key-file"):
            place.with_key(OTHER, required=required)
    with pytest.raises(AccessDenied):
        place.enter(Access.of_services(OTHER.services_token, place.paths))
    with pytest.raises(AccessDenied):
        place.enter(None).get(place.paths.root)


def test_a_student_s_token_opens_the_services_alone(place: Place) -> None:
    store = place.with_key()
    fill(place, store)
    paths = place.paths
    student = place.enter(Access.of_services(KEY.services_token, paths))
    student.create(paths.student("s", "me"), b"1", ephemeral=True)
    teacher = store.get(paths.teacher("s", "t"))
    assert teacher is not None
    student.transact([Set(paths.teacher("s", "t"), b"2", teacher.version)])
    assert student.children(paths.teachers("s")) == ["t"]
    changed = store.get(paths.teacher("s", "t"))
    assert changed is not None
    assert changed.data == b"2"
    for attempt in (
        lambda: student.get(paths.spec("j")),
        lambda: student.children(paths.jobs),
        lambda: student.set(paths.plan("j"), b"", 0),
        lambda: student.delete(paths.node("a")),
        lambda: student.create(paths.node("mine"), b"", ephemeral=True),
        lambda: student.append(paths.event_prefix("j"), b""),
        lambda: student.transact([Create(paths.job("mine"), b"")]),
    ):
        with pytest.raises(AccessDenied):
            attempt()


@pytest.mark.parametrize("whose", ["everybody", "everybody and ours"])
def test_a_tree_that_everybody_may_change_is_refused(place: Place, whose: str) -> None:
    ours = [] if whose == "everybody" else _ours(place)
    place.raw.create(place.paths.root, b"", acl=[*OPEN_ACL_UNSAFE, *ours])
    with pytest.raises(OpenTree, match="--zookeeper-acl open"):
        place.with_key()
    assert place.with_key(required=False).get(place.paths.root) is not None


def test_a_tree_that_a_stranger_was_first_to_make_is_never_used(place: Place) -> None:
    thief = Access.of_key(OTHER, place.paths, required=True)
    readable = ACL(Permissions.READ, Id("world", "anyone"))
    place.raw.create(place.paths.root, b"", acl=[ACL(Permissions.ALL, Id("digest", thief.owner("/"))), readable])
    with pytest.raises(OpenTree, match="somebody else owns it"):
        place.with_key()


def _ours(place: Place) -> list[ACL]:
    owner = Access.of_key(KEY, place.paths).owner(place.paths.root)
    return [ACL(Permissions.ALL, Id("digest", owner))]


def test_the_first_decides_and_who_does_not_insist_follows(place: Place) -> None:
    easy = place.with_key(required=False)
    easy.create(place.paths.node("a"), b"1")
    assert place.raw.get(place.paths.node("a"))[0] == b"1"  # open, as ever
    other = Place(place.hosts)
    try:
        starting = [threading.Thread(target=other.with_key) for _ in range(4)]
        for thread in starting:
            thread.start()
        for thread in starting:
            thread.join()
        late = other.with_key(required=False)
        late.create(other.paths.node("a"), b"1")
        with pytest.raises(kazoo_errors.NoAuthError):
            other.raw.get(other.paths.node("a"))
    finally:
        other.close()


def test_who_may_enter_the_services_and_how(tmp_path: Path) -> None:
    environ = {"EDL_KEY_FILE": str(tmp_path / "key")}
    assert services_access("127.0.0.1:1", "/edl", environ) is None
    key = load_or_create_key(tmp_path / "key")
    by_key = services_access("zk:1", "/edl", environ)
    assert by_key == Access.of_key(key, Paths(), required=True)
    by_token = services_access("zk:1", "/edl", {**environ, SERVICES_TOKEN_VARIABLE: "t"})
    assert by_token == Access.of_services("t", Paths())
    assert "password" not in repr(by_key)


@pytest.mark.parametrize(
    ("zookeeper", "address", "off"),
    [
        ("127.0.0.1:2181", "127.0.0.1", False),
        ("[::1]:2181,localhost:1", "::1", False),
        ("127.0.0.1:2181,10.0.0.1:2181", "127.0.0.1", True),
        ("127.0.0.1:2181", "10.0.0.1", True),
        ("zk:2181", "localhost", True),
        ("127.0.0.1:2181", "0.0.0.0", True),
    ],
)
def test_what_other_machines_reach(zookeeper: str, address: str, off: bool) -> None:
    assert off_loopback(zookeeper, address) is off
