"""Followers of the cluster: told at once, bounded when slow, and no thread while nobody follows."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from api_server import SUBMIT, P, Server

from edl_collective.coord.clock import SystemClock
from edl_collective.coord.errors import Disconnected
from edl_collective.coord.records import Event, encode
from jobserver import feed as feed_module
from jobserver.api_models import ApiError
from jobserver.feed import MAX_WAITING_BYTES, Feed, Follower, Wish
from jobserver.snapshot import Snapshot

WAIT_S = 40.0
JOBS = Wish(frozenset({"jobs"}))


class Cluster:
    def __init__(self) -> None:
        self.server = Server()
        self.lost = False
        view = self.server.controller.view
        self.feed = Feed(view, self._load, lambda snapshot: {"connected": snapshot is not None}, SystemClock())
        self.rung = threading.Event()

    def _load(self, services: bool) -> Snapshot:
        if self.lost:
            raise Disconnected("nobody")
        return self.server.controller.view.load(services=services)

    def join(self, wish: Wish = JOBS) -> Follower:
        follower = Follower(wish, self.rung.set)
        self.feed.join(follower)
        return follower

    def take(self, follower: Follower) -> list[dict[str, Any]]:
        found = [data.decode().partition("data: ")[2] for data in self.feed.take(follower)]
        return [json.loads(data) for data in found]

    def next(self, follower: Follower) -> list[dict[str, Any]]:
        """What comes next; it must come."""
        while True:
            assert self.rung.wait(WAIT_S), "nothing was told"
            self.rung.clear()
            found = self.take(follower)
            if found:
                return found


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    found = Cluster()
    yield found
    found.feed.close()
    found.server.controller.stop()
    assert "edl-feed" not in {thread.name for thread in threading.enumerate()}


def test_everything_first_and_then_each_change(cluster: Cluster) -> None:
    cluster.server.http.post("/api/v1/jobs", json=SUBMIT)
    follower = cluster.join()
    first = {data["topic"]: data for data in cluster.take(follower)}
    assert first["server"]["parts"] == {"connected": True}
    assert (first["jobs"]["full"], list(first["jobs"]["parts"])) == (True, ["j"])
    cluster.server.http.post("/api/v1/jobs", json={**SUBMIT, "job": "k"})
    (change,) = cluster.next(follower)
    assert (change["topic"], change["full"], "k" in change["parts"]) == ("jobs", False, True)


def test_what_two_follow_is_told_to_both_and_the_rest_to_neither(cluster: Cluster) -> None:
    nodes, jobs = cluster.join(Wish(frozenset({"nodes"}))), cluster.join()
    cluster.take(nodes)
    cluster.take(jobs)
    cluster.server.node()
    (change,) = cluster.next(nodes)
    assert list(change["parts"]) == ["a"]
    assert cluster.take(jobs) == []


def test_a_job_is_followed_with_the_events_after_those_that_are_known(cluster: Cluster) -> None:
    cluster.server.http.post("/api/v1/jobs", json=SUBMIT)
    for number in range(3):
        cluster.server.store.append(P.event_prefix("j"), encode(Event(at=1.0, kind="job", text=f"event {number}")))
    newcomer, knowing = cluster.join(Wish(frozenset(), job="j")), None
    numbers = [event["number"] for event in cluster.take(newcomer)[-1]["events"]]
    assert len(numbers) == 3
    knowing = cluster.join(Wish(frozenset(), job="j", after=numbers[1]))
    assert [event["number"] for event in cluster.take(knowing)[-1]["events"]] == numbers[2:]
    cluster.server.store.append(P.event_prefix("j"), encode(Event(at=1.0, kind="job", text="event 3")))
    assert [event["text"] for event in cluster.next(knowing)[-1]["events"]] == ["event 3"]


def test_who_is_too_slow_is_told_everything_anew_and_costs_no_memory(cluster: Cluster) -> None:
    follower = cluster.join()
    cluster.take(follower)
    piece = b"event: change\ndata: {}\n\n" * 10_000
    for _ in range(20):
        cluster.feed._give([follower], piece)
        assert follower.waiting_bytes <= MAX_WAITING_BYTES
        assert sum(map(len, follower.waiting)) <= MAX_WAITING_BYTES
    assert follower.behind
    assert [data["full"] for data in cluster.take(follower)] == [True, True]


def test_without_the_store_it_says_so_and_shows_what_was_known(cluster: Cluster) -> None:
    cluster.server.http.post("/api/v1/jobs", json=SUBMIT)
    follower = cluster.join()
    cluster.take(follower)
    cluster.lost = True
    cluster.server.controller.view.wakes.ring()
    (change,) = cluster.next(follower)
    assert change["parts"] == {"connected": False}
    other = cluster.join()
    assert [list(data["parts"]) for data in cluster.take(other)] == [["connected"], ["j"]]
    cluster.lost = False
    cluster.server.controller.view.wakes.ring()
    assert cluster.next(follower)[0]["parts"] == {"connected": True}


def test_a_fault_in_a_turn_ends_no_stream(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = cluster.join()
    cluster.take(follower)
    with monkeypatch.context() as patch:
        failed = threading.Event()

        def broken(services: bool) -> Snapshot:
            failed.set()
            raise ArithmeticError("a bug")

        patch.setattr(cluster.feed, "_load", broken)
        cluster.server.http.post("/api/v1/jobs", json=SUBMIT)
        assert failed.wait(WAIT_S)
    cluster.server.http.post("/api/v1/jobs", json={**SUBMIT, "job": "k"})
    seen: set[str] = set()
    while not {"j", "k"} <= seen:
        seen |= {name for data in cluster.next(follower) for name in data["parts"]}


def test_the_thread_ends_with_the_last_follower_and_begins_again(cluster: Cluster) -> None:
    for _ in range(2):
        follower = cluster.join()
        thread = cluster.feed._thread
        assert thread is not None
        cluster.feed.leave(follower)
        thread.join(WAIT_S)
        assert (cluster.feed.followers, thread.is_alive(), cluster.feed._topics) == (0, False, {})
    assert len(cluster.server.controller.view.wakes._listeners) == 1  # the control loop's


def test_who_left_before_it_came_does_not_follow(cluster: Cluster) -> None:
    follower = Follower(JOBS, cluster.rung.set)
    cluster.feed.leave(follower)
    cluster.feed.join(follower)
    assert (cluster.feed.followers, cluster.take(follower)) == (0, [])


def test_too_many_are_refused_and_none_after_the_end(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MAX_STREAMS", 1)
    follower = cluster.join()
    with pytest.raises(ApiError, match="1 streams are open already"):
        cluster.join()
    cluster.feed.close()
    assert follower.closed
    with pytest.raises(ApiError, match="this JobServer ends"):
        cluster.join()


def test_the_stream_refuses_what_it_does_not_know() -> None:
    server = Server()
    for query, field in [("topics=jobs,all", "topics"), ("after=x", "after")]:
        answer = server.http.get(f"/api/v1/stream?{query}")
        assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert server.http.get("/api/v1/stream?job=a%2Fb").status_code == 422
    del server.http.headers["Authorization"]
    assert server.http.get("/api/v1/stream").status_code == 401
