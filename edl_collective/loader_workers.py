"""Keeps the worker processes of a DataLoader through a resize.

Ending them and starting others, each a fork of the training process, was a third of the pause of a small model. Within
an epoch they can go on: what changes is which samples this rank reads, and the indices come from this process. A new
epoch gets what the script asked for (persistent_workers). Knows private parts of torch's DataLoader and is the only
module that does; a loader without them is iterated anew.
"""

import contextlib
import queue
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

T = TypeVar("T")

#: what is used of torch's iterator over worker processes
_PARTS = ("_reset", "_index_queues", "_shutdown")


class LoaderWorkers:
    """The iterator under way of one DataLoader, in one epoch."""

    def __init__(self) -> None:
        self._loader: object = None
        #: of the iteration under way; None: workers that wait for their first epoch
        self._epoch: int | None = None
        self._batches: Any = None

    def prepare(self, loader: "DataLoader[T]") -> T:
        """Start the workers of `loader` for whichever epoch comes first; its first batch."""
        batches = iter(loader)
        self._keep(loader, None, batches)
        first: T = next(batches)
        return first

    def iterate(self, loader: Iterable[T], epoch: int) -> Iterator[T]:
        """iter(loader), by the workers of the iteration before if that was of the same loader and epoch.

        The iteration before must not be used any more. Raises RuntimeError when one of the workers has died.
        """
        kept = self._batches if self._loader is loader and self._epoch in (epoch, None) else None
        if kept is None and not getattr(self._batches, "_persistent_workers", True):
            self.end()  # also if somebody still refers to that iteration
        self.forget()
        if kept is None or kept._shutdown:
            kept = iter(loader)
        else:
            _restart(kept, loader)
        self._keep(loader, epoch, kept)
        return kept

    def _keep(self, loader: object, epoch: int | None, batches: Any) -> None:
        if isinstance(loader, DataLoader) and all(hasattr(batches, part) for part in _PARTS):
            self._loader, self._epoch, self._batches = loader, epoch, batches

    def forget(self) -> None:
        """Let the workers end as soon as nobody iterates over them."""
        self._loader, self._batches = None, None

    def end(self) -> None:
        """End the workers now; nothing of theirs runs any more on return."""
        batches = self._batches
        self.forget()
        if batches is not None:
            batches._shutdown_workers()


def _restart(batches: Any, loader: object) -> None:
    """Begin anew with the indices of the sampler as it is now; what was read ahead is dropped."""
    for indices in batches._index_queues:
        with contextlib.suppress(queue.Empty):  # what no worker has begun to read need not be read
            while True:
                indices.get_nowait()
    batches._reset(loader)
