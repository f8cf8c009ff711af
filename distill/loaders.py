"""A user's DataLoader, rebuilt so that its workers collate into the ring and post to the IO process.

The batch sampler deals out a ticket (sequence number, slot) with each batch's indices: so only the trainer allocates.
The collate writes the batch into that slot, writes down in it what it posts, posts, and returns a token; the tokens
come in the DataLoader's order. A batch without a slot (none is free, or it does not fit) comes whole, and the trainer
posts it.

Invariant: the indices, their order and what the user's dataset and collate are called with are the loader's own.
"""

import itertools
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from distill.generators import End
from distill.io_messages import NO_SLOT, Post, encode
from distill.ring import Ring
from distill.slot_batches import Filling, SlotFull, parts_of


class Ticket(NamedTuple):
    """Goes with a batch's indices to the worker that reads it."""

    seq: int
    slot: int


class Token(NamedTuple):
    """Comes back for a batch: it lies in the slot and is posted, or it came whole (`slot` is NO_SLOT)."""

    seq: int
    slot: int
    rows: int
    #: the batch, with InSlot for its tensors
    nest: Any


class Desk(Protocol):
    """Deals out tickets, in the trainer."""

    def begin(self) -> None:
        """An iteration begins: no worker fills a slot of an earlier ticket any more."""

    def issue(self) -> Ticket: ...


class TicketedBatches:
    """The batch sampler: a ticket, then the indices. One index alone for a loader that does not batch."""

    def __init__(self, batches: Iterable[Any], desk: Desk, *, single: bool) -> None:
        self._batches, self._desk, self._single = batches, desk, single

    def __iter__(self) -> Iterator[list[Any]]:
        self._desk.begin()
        for indices in self._batches:
            yield [self._desk.issue(), *([indices] if self._single else indices)]

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]


class TicketedDataset(Dataset[Any]):
    """The user's dataset; the ticket passes through."""

    def __init__(self, dataset: Any, *, single: bool) -> None:
        self._dataset, self._single = dataset, single

    def __getitems__(self, indices: Sequence[Any]) -> tuple[Ticket, Any]:
        ticket, *rest = indices
        if self._single:
            return ticket, self._dataset[rest[0]]
        if getattr(self._dataset, "__getitems__", None):
            return ticket, self._dataset.__getitems__(rest)
        return ticket, [self._dataset[index] for index in rest]

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("a ticketed dataset is read by batches")

    def __getattr__(self, name: str) -> Any:
        """The dataset's own, for a worker_init_fn that looks at get_worker_info().dataset."""
        if name.startswith("_"):  # while it is unpickled it has no dataset yet
            raise AttributeError(name)
        return getattr(self._dataset, name)


class SlotCollate:
    """Collates into the ticket's slot and posts it; `post` None posts nothing."""

    def __init__(
        self, user_collate: Callable[[Any], Any], ring: Ring, post: socket.socket | None, ins: Sequence[str | None]
    ) -> None:
        self._collate = user_collate
        self._ring, self._post, self._ins = ring, post, ins

    def __call__(self, ticketed: tuple[Ticket, Any]) -> Token:
        ticket, samples = ticketed
        if ticket.slot == NO_SLOT:
            return Token(ticket.seq, NO_SLOT, 0, self._collate(samples))
        filling = Filling(self._ring.slot(ticket.slot))
        try:
            batch = self._collate_into(filling, samples)
            nest = filling.store(batch)
        except SlotFull:
            return Token(ticket.seq, NO_SLOT, 0, self._collate(samples))
        if isinstance(nest, End):
            return Token(ticket.seq, NO_SLOT, 0, nest)
        rows, parts = parts_of(nest, self._ins)
        if self._post is not None:
            message = encode(Post(ticket.seq, ticket.slot, rows, filling.end, parts))
            self._ring.announce(ticket.slot, ticket.seq, message)
            self._post.send(message)
        return Token(ticket.seq, ticket.slot, rows, nest)

    def _collate_into(self, filling: Filling, samples: Any) -> Any:
        if self._collate is default_collate:
            return collate(samples, collate_fn_map={**default_collate_fn_map, Tensor: filling.stack})
        return self._collate(samples)


def wrappable(loader: object) -> bool:
    """Whether a loader's batches can be collated into slots: a plain DataLoader over a map-style dataset, in order."""
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return False
    return bool(getattr(loader, "in_order", True))


def wrap(loader: "DataLoader[Any]", desk: Desk, make_collate: Callable[[Any], SlotCollate], window: int) -> Any:
    """A DataLoader that yields Tokens for the batches of `loader`.

    `window` batches at least are read ahead, so that as many requests can be in flight.
    """
    single = loader.batch_sampler is None
    workers = loader.num_workers
    options: dict[str, Any] = {}
    if workers:
        options["prefetch_factor"] = max(loader.prefetch_factor or 2, -(-window // workers))
        options["persistent_workers"] = loader.persistent_workers
        options["multiprocessing_context"] = loader.multiprocessing_context
    return DataLoader(
        TicketedDataset(loader.dataset, single=single),
        batch_sampler=TicketedBatches(loader.sampler if single else loader.batch_sampler, desk, single=single),  # type: ignore[arg-type]
        collate_fn=make_collate(loader.collate_fn),  # type: ignore[arg-type]
        num_workers=workers,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        **options,
    )


class ReadAhead:
    """Reads `count` items ahead of the one that is wanted. An exception comes after the items that were read before
    it."""

    def __init__(self, items: Iterator[Any], count: int) -> None:
        self._items, self._count = items, count
        self._read: list[Any] = []
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Any]:
        while True:
            self._fill()
            if not self._read:
                break
            yield self._read.pop(0)
        if self._error is not None:
            raise self._error

    def _fill(self) -> None:
        if self._error is not None:
            return
        try:
            for item in itertools.islice(self._items, self._count + 1 - len(self._read)):
                self._read.append(item)
        except Exception as error:  # the user's own: raised where the user sees it, in its turn
            self._error = error
