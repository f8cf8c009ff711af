"""What is told of nodes that offer less than they have: once for each life, and once when it is over."""

from collections.abc import Iterator

import pytest
from api_server import P, Server
from msgspec.structs import replace

from edl_collective.coord.records import UNHEALTHY_LABEL, Event, NodeRecord, encode
from jobserver.node_events import MOST_EVENTS, node_history
from jobserver.snapshot import Snapshot, StoredEvent

WELL = NodeRecord(node="a", incarnation="i1", address="h", port=1, slots=4)
ILL = replace(WELL, slots=3, labels={UNHEALTHY_LABEL: "GPU 2: 7 of 9 elements of a matrix product are wrong"})


class History:
    """Appends what is to be told, as the leader does."""

    def __init__(self) -> None:
        self.events: list[StoredEvent] = []

    def look(self, *nodes: NodeRecord, now_s: float = 5.0) -> list[Event]:
        snapshot = Snapshot({node.node: node for node in nodes}, events=tuple(self.events))
        told = node_history(snapshot, now_s).tell
        for event in told:
            self.events.append(StoredEvent(f"e-{len(self.events):010d}", encode(event), 0))
        return list(told)


def test_a_node_that_registers_with_less_is_told_once() -> None:
    history = History()
    (event,) = history.look(ILL, replace(WELL, node="b"))
    assert event.text == f"node a offers 3 slots, fewer than it has: {ILL.labels[UNHEALTHY_LABEL]}"
    assert (event.at, event.kind) == (5.0, "node")
    assert event.fields == {"node": "a", "incarnation": "i1", "healthy": False, "slots": 3}
    assert history.look(ILL) == []
    assert history.look() == []  # it is away
    assert history.look(ILL) == []  # its session was lost, it lives
    assert len(history.look(replace(ILL, incarnation="i2"))) == 1


def test_its_recovery_is_told_once() -> None:
    history = History()
    assert history.look(WELL) == []
    history.look(ILL)
    (event,) = history.look(replace(WELL, incarnation="i2"))
    assert (event.text, event.fields["healthy"]) == ("node a is well again and offers 4 slots", True)
    assert history.look(replace(WELL, incarnation="i2")) == []
    assert len(history.look(replace(ILL, incarnation="i3"))) == 1


def test_old_events_go_but_not_what_says_that_a_node_is_not_well() -> None:
    history = History()
    history.look(ILL)
    history.look(replace(ILL, node="b"))
    history.look(replace(WELL, incarnation="i2"))  # a is well again
    for number in range(MOST_EVENTS):
        history.look(replace(ILL, node="c", incarnation=f"i{number}"))
    gone = node_history(Snapshot(events=tuple(history.events)), 5.0).forget
    assert [event.name for event in gone] == ["e-0000000000", "e-0000000002"]


def test_what_cannot_be_read_is_passed_over() -> None:
    assert node_history(Snapshot({"a": WELL}, events=(StoredEvent("e-0000000000", b"?", 0),)), 5.0).tell == ()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.controller.stop()


def test_the_leader_writes_it_and_the_interface_tells_it(server: Server) -> None:
    server.put(P.node("a"), ILL)
    for _ in range(3):
        server.controller.step()
    server.put(P.node("a"), replace(WELL, incarnation="i2"))
    for _ in range(3):
        server.controller.step()
    found = server.http.get("/api/v1/events").json()
    assert [(event["number"], event["fields"]["healthy"]) for event in found["events"]] == [(0, False), (1, True)]
    assert found["next"] is None
    assert server.http.get("/api/v1/events?limit=1").json()["next"] == 0
    assert server.http.get("/api/v1/events?after=0").json()["events"] == found["events"][1:]
    assert server.http.get("/api/v1/health").json()["problems"] == []


def test_an_event_that_cannot_be_read_is_shown_as_such(server: Server) -> None:
    server.store.append(P.cluster_event_prefix, b"?")
    server.controller.step()
    assert [event["kind"] for event in server.http.get("/api/v1/events").json()["events"]] == ["unreadable"]
    assert server.http.get("/api/v1/health").json()["problems"] == []
