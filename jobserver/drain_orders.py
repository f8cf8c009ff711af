"""Orders to drain a node: what the API writes and deletes at /drains/<node>.

An order is for a name, not for a life of the node: it outlives it, and holds when the node is back. What follows from
it is decided elsewhere.
"""

from edl_collective.coord.errors import NotFound, VersionConflict
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import encode
from edl_collective.coord.store import Store
from jobserver.api_models import ApiError, Json, parse_drain
from jobserver.snapshot import Snapshot, knows

WRITE_ATTEMPTS = 5


def order_drain(store: Store, paths: Paths, snapshot: Snapshot, node: str, body: bytes, now_s: float) -> Json:
    """Order that a node be left; ordered again, only the deadline changes. `there`: whether it is registered now.

    Raises ApiError 404 for one that is not, unless a job or a drain knows it, or the order is for an absent node.
    """
    order, absent = parse_drain(body, node, now_s)
    if not (absent or knows(snapshot, node)):
        text = f"there is no node {node}, and no job knows it: is the name right? If it is to come, say absent"
        raise ApiError(404, f"{text} (edl drain {node} --absent)", "node")
    path = paths.drain(node)
    for _ in range(WRITE_ATTEMPTS):
        found = store.get(path)
        try:
            store.set(path, encode(order, path), None if found is None else found.version)
        except (VersionConflict, NotFound):
            continue
        there = node in snapshot.nodes
        return {"node": node, "draining": True, "deadline_s": order.deadline_s, "there": there}
    raise ApiError(409, f"node {node} is being drained by others: try again")


def cancel_drain(store: Store, paths: Paths, node: str) -> Json:
    """Cancel the order; the node need not be there. Raises ApiError 404 where nobody drains it."""
    path = paths.drain(node)
    if store.get(path) is None:
        raise ApiError(404, f"nobody drains node {node}", "node")
    store.delete(path)
    return {"node": node, "draining": False}
