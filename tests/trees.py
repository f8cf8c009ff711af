"""Deleting what a store has below a path while others may still write there."""

from edl_collective.coord.errors import NotEmpty, NotFound, VersionConflict
from edl_collective.coord.store import Store
from jobserver.forget import delete_tree, read_tree


def delete_all(store: Store, path: str) -> None:
    """Delete `path` and all below it, in one transaction, as often as somebody writes in between."""
    while True:
        try:
            tree = read_tree(store, path)
            if tree:
                delete_tree(store, tree)
            return
        except (NotFound, NotEmpty, VersionConflict):
            continue
