"""The history of the cluster's nodes: one that offers less than it has, as its check failed, and its recovery. [pure]

Invariant: what is to be told follows from the nodes and from what was told before, which lies in the store; so a new
leader tells nothing twice. The newest event of a node stays as long as it says that the node is not well.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from edl_collective.coord.errors import RecordError
from edl_collective.coord.records import UNHEALTHY_LABEL, Event, NodeRecord, decode
from jobserver.snapshot import Snapshot, StoredEvent

KIND = "node"
MOST_EVENTS = 200


@dataclass(frozen=True, slots=True)
class NodeHistory:
    """What is to be appended, and which events are to go."""

    tell: tuple[Event, ...] = ()
    forget: tuple[StoredEvent, ...] = ()


def node_history(snapshot: Snapshot, now_s: float) -> NodeHistory:
    """`now_s`: wall time, of the events."""
    known = {event.name: _read(event.data) for event in snapshot.events}
    newest: dict[str, tuple[str, Event]] = {}
    for name, event in known.items():  # oldest first
        if event is not None and event.kind == KIND:
            newest[str(event.fields.get("node"))] = name, event
    tell = [event for node in snapshot.nodes.values() if (event := _news(node, newest.get(node.node), now_s))]
    kept = {name for name, event in newest.values() if event.fields.get("healthy") is False}
    return NodeHistory(tuple(tell), tuple(_surplus(snapshot.events, kept)))


def _news(node: NodeRecord, told: tuple[str, Event] | None, now_s: float) -> Event | None:
    problem = node.labels.get(UNHEALTHY_LABEL)
    before = told[1].fields if told is not None else {}
    life = {"node": node.node, "incarnation": node.incarnation}
    if problem is not None and before.get("incarnation") != node.incarnation:
        text = f"node {node.node} offers {node.slots} slots, fewer than it has: {problem}"
        return Event(at=now_s, kind=KIND, text=text, fields={**life, "healthy": False, "slots": node.slots})
    if problem is None and before.get("healthy") is False:
        text = f"node {node.node} is well again and offers {node.slots} slots"
        return Event(at=now_s, kind=KIND, text=text, fields={**life, "healthy": True, "slots": node.slots})
    return None


def _surplus(events: Iterable[StoredEvent], kept: set[str]) -> list[StoredEvent]:
    old = list(events)[:-MOST_EVENTS]
    return [event for event in old if event.name not in kept]


@lru_cache(maxsize=2 * MOST_EVENTS)
def _read(data: bytes) -> Event | None:
    """None for what is no event: whoever shows the history says so."""
    try:
        return decode(data, Event)
    except RecordError:
        return None
