"""Orders to drain or cordon a node: what the API writes and deletes at /drains/<node>.

An order is for a name, not for a life of the node: it outlives it, and holds when the node is back. A drain takes the
place of a cordon, never the other way round. What follows from an order is decided elsewhere.
"""

from msgspec import structs

from edl_collective.coord.errors import NotFound, RecordError, VersionConflict
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import DrainRecord, decode, encode
from edl_collective.coord.store import Store, Versioned
from jobserver.api_models import ApiError, Json, parse_drain
from jobserver.snapshot import Snapshot, knows

WRITE_ATTEMPTS = 5


def order_drain(store: Store, paths: Paths, snapshot: Snapshot, node: str, body: bytes, now_s: float) -> Json:
    """Order that a node be left; ordered again, only the deadline changes. `there`: whether it is registered now.

    Raises ApiError 404 for one that is not, unless a job or a drain knows it, or the order is for an absent node.
    """
    order, absent = parse_drain(body, node, now_s)
    _check_known(snapshot, node, "drain", absent)
    _write(store, paths, order)
    return {"node": node, "draining": True, "deadline_s": order.deadline_s, "there": node in snapshot.nodes}


def order_cordon(store: Store, paths: Paths, snapshot: Snapshot, node: str, body: bytes, now_s: float) -> Json:
    """Order that a node take no new workers; those that it has stay. `there`: whether it is registered now.

    Raises ApiError 404 as `order_drain` does, and 409 for a node that somebody drains.
    """
    order, absent = parse_drain(body, node, now_s)
    if order.deadline_s is not None:
        raise ApiError(422, "a cordon has no deadline_s: nobody has to leave; drain the node instead", "deadline_s")
    _check_known(snapshot, node, "cordon", absent)
    _write(store, paths, structs.replace(order, cordon=True))
    return {"node": node, "cordoned": True, "there": node in snapshot.nodes}


def cancel_drain(store: Store, paths: Paths, node: str) -> Json:
    """Cancel the order; the node need not be there. Raises ApiError 404 where nobody drains it."""
    _cancel(store, paths, node, cordon=False)
    return {"node": node, "draining": False}


def cancel_cordon(store: Store, paths: Paths, node: str) -> Json:
    """Cancel the order; the node need not be there. Raises ApiError 404 where nobody cordons it."""
    _cancel(store, paths, node, cordon=True)
    return {"node": node, "cordoned": False}


def _check_known(snapshot: Snapshot, node: str, verb: str, absent: bool) -> None:
    if not (absent or knows(snapshot, node)):
        text = f"there is no node {node}, and no job knows it: is the name right? If it is to come, say absent"
        raise ApiError(404, f"{text} (edl {verb} {node} --absent)", "node")


def _write(store: Store, paths: Paths, order: DrainRecord) -> None:
    path = paths.drain(order.node)
    for _ in range(WRITE_ATTEMPTS):
        found = store.get(path)
        if order.cordon and found is not None and _cordons(found, path) is False:
            raise ApiError(409, f"node {order.node} drains, so it takes no workers: edl undrain {order.node} first")
        try:
            store.set(path, encode(order, path), None if found is None else found.version)
        except (VersionConflict, NotFound):
            continue
        return
    raise ApiError(409, f"orders for node {order.node} are being given by others: try again")


def _cancel(store: Store, paths: Paths, node: str, *, cordon: bool) -> None:
    path = paths.drain(node)
    did, other = ("cordons", "undrain") if cordon else ("drains", "uncordon")
    found = store.get(path)
    if found is None:
        raise ApiError(404, f"nobody {did} node {node}", "node")
    if _cordons(found, path) is (not cordon):
        raise ApiError(404, f"nobody {did} node {node}: edl {other} {node} is what lets it take workers again", "node")
    try:
        store.delete(path, found.version)
    except (VersionConflict, NotFound):
        raise ApiError(409, f"orders for node {node} are being given by others: try again") from None


def _cordons(found: Versioned, path: str) -> bool | None:
    """None for an order that cannot be read, which either may replace or cancel."""
    try:
        return decode(found.data, DrainRecord, path).cordon
    except RecordError:
        return None
