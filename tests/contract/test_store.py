"""The contract of Store, run against the in-memory store and a real ZooKeeper."""

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from trees import delete_all

from edl_collective.coord.access import Access
from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.errors import Disconnected, Exists, NotEmpty, NotFound, NotLeader, VersionConflict
from edl_collective.coord.leadership import Leadership
from edl_collective.coord.memory_store import MemoryStore, MemoryTree
from edl_collective.coord.mirror import Mirror
from edl_collective.coord.paths import Paths
from edl_collective.coord.store import Check, Create, Delete, Session, Set, Store
from edl_collective.coord.zk_store import ZkStore
from jobserver.forget import delete_tree, read_tree


@dataclass
class Sessions:
    """Opens sessions of one ensemble; `root` is empty and of this test alone."""

    open: Callable[[], Store]
    root: str


KEY = ClusterKey(b"a key for tests, thirty-two byte")
ON_ZOOKEEPER = [pytest.param(name, marks=pytest.mark.integration) for name in ("zookeeper", "zookeeper-closed")]


@pytest.fixture(params=["memory", *ON_ZOOKEEPER])
def sessions(request: pytest.FixtureRequest) -> Iterator[Sessions]:
    opened: list[Store] = []
    root = f"/test-{uuid.uuid4().hex[:8]}"
    if request.param == "memory":
        tree = MemoryTree()

        def connect() -> Store:
            opened.append(MemoryStore(tree))
            return opened[-1]
    else:
        hosts = request.getfixturevalue("zookeeper")

        def connect() -> Store:
            closed = request.param == "zookeeper-closed"
            access = Access.of_key(KEY, Paths(root), required=True) if closed else None
            opened.append(ZkStore(hosts, session_timeout_s=4, access=access).start())
            return opened[-1]

    # below the root of a closed tree lie its services
    yield Sessions(connect, f"{root}/below")
    for store in opened:
        store.close()


@pytest.fixture
def store(sessions: Sessions) -> Store:
    return sessions.open()


class Woken:
    """A wake that a test can wait for."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._event = threading.Event()

    def __call__(self, path: str = "") -> None:
        self.paths.append(path)
        self._event.set()

    def wait(self) -> None:
        assert self._event.wait(60), "no wake came"
        self._event.clear()


def test_get_of_a_missing_path_is_none(store: Store, sessions: Sessions) -> None:
    assert store.get(f"{sessions.root}/nothing") is None
    assert store.children(f"{sessions.root}/nothing") == []


def test_create_makes_parents_and_refuses_twice(store: Store, sessions: Sessions) -> None:
    path = f"{sessions.root}/a/b/c"
    store.create(path, b"1")
    found = store.get(path)
    assert found is not None
    assert (found.data, found.version, found.owner) == (b"1", 0, None)
    assert store.children(f"{sessions.root}/a") == ["b"]
    with pytest.raises(Exists):
        store.create(path, b"2")


def test_set_is_conditional(store: Store, sessions: Sessions) -> None:
    path = f"{sessions.root}/x"
    assert store.set(path, b"0", None) == 0
    assert store.set(path, b"1", 0) == 1
    with pytest.raises(VersionConflict):
        store.set(path, b"2", 0)
    with pytest.raises(VersionConflict):
        store.set(path, b"2", None)
    with pytest.raises(NotFound):
        store.set(f"{sessions.root}/y", b"2", 0)
    found = store.get(path)
    assert found is not None
    assert (found.data, found.version) == (b"1", 1)


def test_delete(store: Store, sessions: Sessions) -> None:
    parent, child = f"{sessions.root}/p", f"{sessions.root}/p/c"
    store.create(child, b"1")
    with pytest.raises(NotEmpty):
        store.delete(parent)
    with pytest.raises(VersionConflict):
        store.delete(child, 7)
    store.delete(child, 0)
    assert store.get(child) is None
    store.delete(parent)
    store.delete(parent)


def test_a_job_is_deleted_whole_or_not_at_all(store: Store, sessions: Sessions) -> None:
    root = f"{sessions.root}/jobs/a"
    for path in ("spec", "status", "workers/w1", "workers/w2"):
        store.create(f"{root}/{path}", b"1")
    assert read_tree(store, f"{sessions.root}/nothing") == {}
    changed = read_tree(store, root)
    store.set(f"{root}/spec", b"2", 0)
    with pytest.raises(VersionConflict):
        delete_tree(store, changed)
    grown = read_tree(store, root)
    store.create(f"{root}/workers/w3")
    with pytest.raises(NotEmpty):
        delete_tree(store, grown)
    assert set(read_tree(store, root)) == {*grown, f"{root}/workers/w3"}
    delete_tree(store, read_tree(store, root))
    assert store.children(f"{sessions.root}/jobs") == []


def test_append_numbers_increase(store: Store, sessions: Sessions) -> None:
    names = [store.append(f"{sessions.root}/events/e-", b"x") for _ in range(3)]
    assert names == sorted(names)
    assert len(set(names)) == 3
    assert all(len(name.rsplit("-", 1)[1]) == 10 for name in names)


def test_ephemeral_ends_with_its_session(sessions: Sessions) -> None:
    owner, other = sessions.open(), sessions.open()
    path = f"{sessions.root}/nodes/a"
    owner.create(path, b"here", ephemeral=True)
    found = other.get(path)
    assert found is not None
    assert found.owner == owner.session_id
    assert found.owner != other.session_id
    owner.close()
    assert other.get(path) is None


def test_transaction_is_all_or_nothing(store: Store, sessions: Sessions) -> None:
    root = sessions.root
    store.create(f"{root}/fence", b"1")
    store.create(f"{root}/old", b"1")
    store.transact(
        [Check(f"{root}/fence", 0), Create(f"{root}/new", b"n"), Set(f"{root}/old", b"2", 0), Delete(f"{root}/old", 1)]
    )
    assert store.children(root) == ["fence", "new"]
    with pytest.raises(VersionConflict) as refused:
        store.transact([Create(f"{root}/other"), Check(f"{root}/fence", 3)])
    assert refused.value.path == f"{root}/fence"
    with pytest.raises(Exists):
        store.transact([Set(f"{root}/fence", b"2", 0), Create(f"{root}/new")])
    with pytest.raises(NotFound):
        store.transact([Create(f"{root}/other"), Set(f"{root}/absent", b"", 0)])
    assert store.children(root) == ["fence", "new"]
    fence = store.get(f"{root}/fence")
    assert fence is not None
    assert fence.version == 0


@pytest.mark.parametrize("change", ["set", "delete"])
def test_get_leaves_a_watch(sessions: Sessions, change: str) -> None:
    reader, writer = sessions.open(), sessions.open()
    path = f"{sessions.root}/x"
    writer.create(path, b"0")
    woken = Woken()
    reader.get(path, woken)
    if change == "set":
        writer.set(path, b"1", 0)
    else:
        writer.delete(path)
    woken.wait()
    assert woken.paths == [path]


def test_children_leaves_a_watch_even_before_the_path_exists(sessions: Sessions) -> None:
    reader, writer = sessions.open(), sessions.open()
    woken = Woken()
    assert reader.children(f"{sessions.root}/jobs", woken) == []
    writer.create(f"{sessions.root}/jobs")
    woken.wait()
    assert reader.children(f"{sessions.root}/jobs", woken) == []
    writer.create(f"{sessions.root}/jobs/a")
    woken.wait()
    assert reader.children(f"{sessions.root}/jobs") == ["a"]


def test_mirror_follows_every_change(sessions: Sessions) -> None:
    reader, writer = sessions.open(), sessions.open()
    root = sessions.root
    woken = Woken()
    mirror = Mirror(reader, root, woken)
    assert dict(mirror.refresh()) == {}

    def settle(expected: dict[str, bytes]) -> None:
        while {path: value.data for path, value in mirror.refresh().items()} != expected:
            woken.wait()

    writer.create(f"{root}/jobs/a/spec", b"s1")
    settle({f"{root}/jobs/a/spec": b"s1"})
    writer.create(f"{root}/jobs/a/workers/w1", b"w", ephemeral=True)
    writer.create(f"{root}/jobs/b/spec", b"t")
    writer.set(f"{root}/jobs/a/spec", b"s2", 0)
    settle({f"{root}/jobs/a/spec": b"s2", f"{root}/jobs/a/workers/w1": b"w", f"{root}/jobs/b/spec": b"t"})
    delete_all(writer, f"{root}/jobs/a")
    settle({f"{root}/jobs/b/spec": b"t"})
    writer.create(f"{root}/jobs/a/spec", b"again")
    settle({f"{root}/jobs/b/spec": b"t", f"{root}/jobs/a/spec": b"again"})
    delete_all(writer, root)
    settle({})
    writer.create(f"{root}/nodes/n", b"n")
    settle({f"{root}/nodes/n": b"n"})
    mirror.close()


def test_one_leads_and_a_replaced_leader_cannot_write(sessions: Sessions) -> None:
    paths = Paths(sessions.root)
    first_store, second_store = sessions.open(), sessions.open()
    first = Leadership(first_store, paths, "s1", "http://127.0.0.1:1")
    second = Leadership(second_store, paths, "s2", "http://127.0.0.1:2")
    assert first.try_lead() == 1
    assert second.try_lead() is None
    assert first.try_lead() == 1
    fence = first.fence()
    first_store.create(paths.plan("j"), b"1")
    first_store.transact([fence, Set(paths.plan("j"), b"2", 0)])
    # A third party removes the holder, as the ensemble does when the session of a stopped process expires.
    second_store.delete(paths.leader)
    assert second.try_lead() == 2
    with pytest.raises(VersionConflict):
        first_store.transact([fence, Set(paths.plan("j"), b"3", 1)])
    first.doubt()
    assert first.try_lead() is None
    with pytest.raises(NotLeader):
        first.fence()
    second.resign()
    assert first.try_lead() == 3


def test_close_ends_the_session(store: Store) -> None:
    states: list[Session] = []
    store.on_session(states.append)
    assert store.session is Session.CONNECTED
    store.close()
    assert states[-1] is Session.LOST
    with pytest.raises(Disconnected):
        store.get("/")
