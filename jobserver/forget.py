"""Deleting what the store has of a job: all of it in one transaction, or nothing.

Invariant: no cut leaves half a job. A spec without its status would be trained again, and a status or a worker without
its spec would be taken for those of the next job of that name. Whether a job may be deleted is decided by the caller.
"""

from collections.abc import Mapping

from edl_collective.coord.errors import NotFound
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import WorkerRecord, decode
from edl_collective.coord.store import Delete, Store, Versioned
from jobserver.job_state import is_over
from jobserver.snapshot import Snapshot


def read_tree(store: Store, path: str) -> dict[str, Versioned]:
    """What `path` and everything below it hold, the deepest first; empty if there is no such path.

    Raises NotFound when something is deleted meanwhile.
    """
    top = store.get(path)
    if top is None:
        return {}
    found: dict[str, Versioned] = {}
    for name in store.children(path):
        below = read_tree(store, f"{path}/{name}")
        if not below:
            raise NotFound(f"{path}/{name}")
        found.update(below)
    return {**found, path: top}


def delete_tree(store: Store, tree: Mapping[str, Versioned]) -> None:
    """Delete what `read_tree` found, if it is still the same and all that there is.

    Raises VersionConflict, NotFound or NotEmpty when it is not; then nothing is deleted.
    """
    store.transact([Delete(path, found.version) for path, found in tree.items()])


def first_alive(tree: Mapping[str, Versioned], paths: Paths, snapshot: Snapshot) -> WorkerRecord | None:
    """A worker of `tree` whose process may still run, None if there is none. Raises RecordError."""
    for path, found in tree.items():
        key = paths.parse(path)
        if key is not None and key.kind == "worker":
            record = decode(found.data, WorkerRecord, path)
            if not is_over(record, snapshot):
                return record
    return None
