"""Records, paths, keys, and the stores' behaviour when a session breaks."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from trees import delete_all

from edl_collective.coord.auth import ClusterKey, same
from edl_collective.coord.errors import Disconnected, RecordError, RecordTooLarge, VersionConflict
from edl_collective.coord.leadership import Leadership
from edl_collective.coord.memory_store import MemoryStore, MemoryTree
from edl_collective.coord.mirror import Mirror
from edl_collective.coord.paths import Key, Paths
from edl_collective.coord.records import (
    MAX_RECORD_BYTES,
    JobSpec,
    LeaderRecord,
    Member,
    Plan,
    PlannedWorker,
    Rendezvous,
    decode,
    encode,
)
from edl_collective.coord.store import Versioned, Wake

NAMES = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True)


@given(job=NAMES, worker=NAMES, node=NAMES)
def test_paths_round_trip(job: str, worker: str, node: str) -> None:
    paths = Paths("/team/edl")
    assert paths.parse(paths.node(node)) == Key("node", node=node)
    assert paths.parse(paths.worker(job, worker)) == Key("worker", job=job, worker=worker)
    for kind in ("spec", "plan", "status", "progress", "driver", "rendezvous"):
        assert paths.parse(getattr(paths, kind)(job)) == Key(kind, job=job)
    assert paths.parse(paths.cluster_event_prefix + "0000000007") == Key("event", event="e-0000000007")
    assert paths.parse(paths.event_prefix(job) + "0000000007") == Key("event", job=job, event="e-0000000007")


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a#b", "-a", "a.", "a b", "a" * 64, "a\n"])
def test_names_that_would_break_a_path_or_url_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a node"):
        Paths().node(name)


@pytest.mark.parametrize("path", ["/edl", "/edl/jobs", "/edl/jobs/a/what", "/other/jobs/a/spec", "/edl/jobs/a/spec/x"])
def test_foreign_paths_parse_to_none(path: str) -> None:
    assert Paths("/edl").parse(path) is None


def test_largest_records_fit_a_znode_at_256_workers() -> None:
    node = "n" * 63
    members = tuple(Member("w" * 12, node, i, i % 8, 8, i // 8, 32) for i in range(256))
    planned = tuple(PlannedWorker("w" * 12, node, i % 8) for i in range(256))
    world = Rendezvous(generation=10**6, epoch=10**3, members=members, cause="c" * 1000)
    plan = Plan(revision=1, workers=planned, driver_node=node, reason="r" * 1000, next_worker=1, leader_epoch=1)
    assert decode(encode(world), Rendezvous) == world
    assert decode(encode(plan), Plan) == plan


def test_a_record_beyond_the_bound_is_refused() -> None:
    spec = JobSpec(job="j", command=("x" * MAX_RECORD_BYTES,))
    with pytest.raises(RecordTooLarge, match="/edl/jobs/j/spec"):
        encode(spec, "/edl/jobs/j/spec")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b'{"job": 1}', "job"),
        (b'{"job": "j", "command": []}', "command is empty"),
        (b'{"job": "j", "command": ["x"], "schema": 99}', "newer EDL"),
        (b'{"job": "j", "command": ["x"], "min_np": 3, "max_np": 2}', "min_np is 3 and max_np is 2"),
        (b'{"job": "j", "command": ["x"], "max_np": 2, "np": 4}', "np is 4"),
        (b'{"job": "a/b", "command": ["x"]}', "cannot name a job"),
    ],
)
def test_bytes_that_are_not_the_record_are_an_error_that_names_the_path(data: bytes, complaint: str) -> None:
    with pytest.raises(RecordError, match=complaint) as error:
        decode(data, JobSpec, "/edl/jobs/j/spec")
    assert "/edl/jobs/j/spec" in str(error.value)
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value)


def test_unknown_fields_of_a_newer_writer_are_ignored() -> None:
    assert decode(b'{"job": "j", "command": ["x"], "later": true}', JobSpec).job == "j"


def test_tokens_differ_by_purpose_and_never_show_the_key() -> None:
    key = ClusterKey(b"0123456789abcdef")
    tokens = {key.api_token, key.worker_token("j", "w1"), key.worker_token("j", "w2"), key.worker_token("jw", "1")}
    assert len(tokens) == 4
    assert "0123456789abcdef" not in repr(key)
    assert same(key.api_token, ClusterKey(b"0123456789abcdef").api_token)
    assert not same(key.api_token, ClusterKey(b"0123456789abcdeg").api_token)
    with pytest.raises(ValueError, match="5 bytes"):
        ClusterKey(b"short")


def test_mirror_reads_only_what_changed_and_forgets_nothing_in_an_outage() -> None:
    tree = MemoryTree()
    store, writer = MemoryStore(tree), MemoryStore(tree)
    writer.create("/edl/a", b"1")
    wakes: list[None] = []
    mirror = Mirror(store, "/edl", lambda: wakes.append(None))
    first = mirror.refresh()
    writer.set("/edl/a", b"2", 0)
    assert wakes
    store.suspend()
    with pytest.raises(Disconnected):
        mirror.refresh()
    writer.create("/edl/b", b"3")
    store.resume()
    assert {path: value.data for path, value in mirror.refresh().items()} == {"/edl/a": b"2", "/edl/b": b"3"}
    assert first["/edl/a"].data == b"1"


class LoggingStore(MemoryStore):
    """A store that remembers which paths were read."""

    def __init__(self, tree: MemoryTree) -> None:
        super().__init__(tree)
        self.read: list[str] = []

    def get(self, path: str, wake: Wake | None = None) -> Versioned | None:
        self.read.append(path)
        return super().get(path, wake)


def test_mirror_reads_no_brothers_of_what_came_or_went() -> None:
    tree = MemoryTree()
    store, writer = LoggingStore(tree), MemoryStore(tree)
    for name in ("a", "b", "c"):
        writer.create(f"/edl/nodes/{name}", b"1")
    mirror = Mirror(store, "/edl", lambda: None)
    mirror.refresh()
    store.read.clear()
    writer.create("/edl/nodes/d", b"1")
    writer.delete("/edl/nodes/a")
    assert sorted(mirror.refresh()) == ["/edl/nodes/b", "/edl/nodes/c", "/edl/nodes/d"]
    assert not {"/edl/nodes/b", "/edl/nodes/c"} & set(store.read)


class LateChildren(MemoryStore):
    """A store whose news of the children of one path comes when the test says so, after all other news."""

    def __init__(self, tree: MemoryTree, late: str) -> None:
        super().__init__(tree)
        self._late = late
        self._held: list[tuple[Wake, str]] = []

    def children(self, path: str, wake: Wake | None = None) -> list[str]:
        if wake is None or path != self._late:
            return super().children(path, wake)
        return super().children(path, lambda at: self._held.append((wake, at)))

    def tell(self) -> None:
        while self._held:
            wake, path = self._held.pop()
            wake(path)


def test_mirror_sees_a_path_that_was_deleted_and_created_again_before_its_parent_was_read() -> None:
    tree = MemoryTree()
    store, writer = LateChildren(tree, "/edl/jobs"), MemoryStore(tree)
    writer.create("/edl/jobs/a/spec", b"1")
    mirror = Mirror(store, "/edl", lambda: None)
    assert list(mirror.refresh()) == ["/edl/jobs/a/spec"]
    delete_all(writer, "/edl/jobs/a")
    assert list(mirror.refresh()) == []
    writer.create("/edl/jobs/a/spec", b"2")
    store.tell()
    assert [value.data for value in mirror.refresh().values()] == [b"2"]


class BornBetween(MemoryStore):
    """A store in which a path is created just after somebody has read that it is not there."""

    def __init__(self, tree: MemoryTree, path: str) -> None:
        super().__init__(tree)
        self._path: str | None = path

    def get(self, path: str, wake: Wake | None = None) -> Versioned | None:
        found = super().get(path, wake)
        if path == self._path:
            self._path = None
            self.create(path, b"born")
        return found


def test_mirror_sees_a_root_that_is_created_while_it_looks() -> None:
    store = BornBetween(MemoryTree(), "/edl/jobs/a/plan")
    mirror = Mirror(store, "/edl/jobs/a/plan", lambda: None)
    mirror.refresh()
    assert [value.data for value in mirror.refresh().values()] == [b"born"]


def test_a_suspended_leader_does_not_lead_and_takes_up_its_epoch_again() -> None:
    tree = MemoryTree()
    store = MemoryStore(tree)
    leadership = Leadership(store, Paths(), "s1", "http://127.0.0.1:1")
    assert leadership.try_lead() == 1
    store.suspend()
    assert leadership.epoch is None
    with pytest.raises(Disconnected):
        leadership.try_lead()
    store.resume()
    assert leadership.epoch is None
    assert leadership.try_lead() == 1


def test_a_leader_that_has_died_is_replaced_before_its_session_ends() -> None:
    tree = MemoryTree()
    first, second = MemoryStore(tree), MemoryStore(tree)
    leader = Leadership(first, Paths(), "s1", "http://127.0.0.1:1")
    standby = Leadership(second, Paths(), "s2", "http://127.0.0.1:2")
    leader.try_lead()
    found = first.get(Paths().leader)
    assert found is not None
    record = decode(found.data, LeaderRecord)
    assert standby.try_lead(replace(record, epoch=0)) is None, "that one was another leader"
    fence = leader.fence()
    assert standby.try_lead(record) == 2
    with pytest.raises(VersionConflict):
        first.transact([fence])
    leader.doubt()
    assert leader.try_lead() is None


def test_a_restarted_server_takes_its_own_place_once() -> None:
    tree = MemoryTree()
    stores = [MemoryStore(tree) for _ in range(2)]
    old, new = (Leadership(store, Paths(), "s1", "http://127.0.0.1:1") for store in stores)
    assert old.try_lead() == 1
    assert new.try_lead() == 2, "two processes cannot listen at one address"
    old.doubt()
    assert old.try_lead() is None, "on two machines they can, and do not take turns for ever"


def test_an_expired_leader_begins_a_new_epoch() -> None:
    tree = MemoryTree()
    store = MemoryStore(tree)
    leadership = Leadership(store, Paths(), "s1", "http://127.0.0.1:1")
    assert leadership.try_lead() == 1
    old_fence = leadership.fence()
    store.expire()
    store.resume()
    assert leadership.try_lead() == 2
    with pytest.raises(VersionConflict):
        store.transact([old_fence])
