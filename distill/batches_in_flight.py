"""The batches that the IO process knows: where they lie, into which requests they are divided, what is answered.

Invariant: predictions are written only for a batch that was neither answered nor removed, each row once. A batch that
is posted again after it was answered or removed is ignored: its slot may hold another one by now.
"""

import mmap
import os
from collections import deque
from collections.abc import Iterable, Sequence

from distill.answers import Output
from distill.connection import InFile
from distill.errors import ConfigError, Mismatch
from distill.io_messages import NO_SLOT, Part, Post
from distill.ring import Ring, aligned

#: requests of a batch are numbered seq x this + part, so that a lower number is wanted earlier
_PARTS = 1 << 20
#: answered batches that are remembered: more than there are slots
_REMEMBERED = 1 << 14


class Batch:
    """One posted batch. `memory` holds the predictions behind `post.room`; `sources` the tensors, by descriptor.

    `place` is the descriptor of a file that stays open, and where `memory` begins in it, if it lies in one.
    """

    def __init__(
        self,
        post: Post,
        memory: memoryview,
        sources: Sequence[memoryview],
        most_rows: int | None,
        place: tuple[int, int] | None = None,
    ) -> None:
        self.post = post
        self.outputs: tuple[Part, ...] = ()
        self._memory = memory
        self._sources = sources
        self._place = place
        self._step = most_rows or post.rows
        self._missing = set(range(-(-post.rows // self._step)))

    def requests(self) -> list[tuple[int, int]]:
        """Numbers and rows of the requests that are not answered."""
        return [(self.post.seq * _PARTS + n, self.rows(n)) for n in sorted(self._missing)]

    def rows(self, number: int) -> int:
        """Rows of its request `number`."""
        return min(self._step, self.post.rows - number * self._step)

    def views(self, number: int, parts: Iterable[Part]) -> list[memoryview | InFile]:
        """The bytes of the rows of request `number`, tensor by tensor, where they are."""
        views: list[memoryview | InFile] = []
        for part in parts:
            row_bytes = part.size_bytes // self.post.rows
            begin = part.offset + number * self._step * row_bytes
            view = self._sources[part.descriptor][begin : begin + self.rows(number) * row_bytes]
            views.append(view if self._place is None else InFile(view, self._place[0], self._place[1] + begin))
        return views

    def put(self, number: int, names: Sequence[str], outputs: Sequence[Output]) -> bool:
        """Write the predictions of request `number`; returns whether the batch is complete.

        Raises ConfigError when the slot has no room for them, Mismatch when parts of the batch do not fit together.
        """
        if not self.outputs:
            self.outputs = self._lay_out(names, outputs)
        for part, output in zip(self.outputs, outputs, strict=True):
            if (part.datatype, part.shape[1:]) != (output.datatype, output.shape[1:]):
                raise Mismatch(
                    f"teachers disagree on {part.name!r}: rows of {part.datatype} {list(part.shape[1:])} and of "
                    f"{output.datatype} {list(output.shape[1:])}; let all serve one model at one precision"
                )
            begin = part.offset + number * self._step * (part.size_bytes // self.post.rows)
            self._memory[begin : begin + len(output.data)] = output.data
        self._missing.discard(number)
        return not self._missing

    def _lay_out(self, names: Sequence[str], outputs: Sequence[Output]) -> tuple[Part, ...]:
        parts = []
        end = self.post.room
        for name, output in zip(names, outputs, strict=True):
            part = Part(name, output.datatype, (self.post.rows, *output.shape[1:]), aligned(end))
            parts.append(part)
            end = part.offset + part.size_bytes
        if end > len(self._memory):
            raise ConfigError(
                f"a batch with its predictions takes {end} bytes and a slot has {len(self._memory)}: raise slot_mb "
                "(EDL_DISTILL_SLOT_MB)"
            )
        return tuple(parts)


class Batches:
    """All batches that are not answered, by sequence number."""

    def __init__(self, ring: Ring, most_rows: int | None, below: int) -> None:
        self._ring = ring
        self._most_rows = most_rows
        self._below = below
        self._batches: dict[int, Batch] = {}
        self._ended: set[int] = set()
        self._ended_order: deque[int] = deque()

    def all(self) -> list[Batch]:
        return list(self._batches.values())

    def add(self, post: Post, descriptors: Sequence[int]) -> Batch | None:
        """Take a batch, and its descriptors, which are closed; None for one that is known or not wanted."""
        place = None
        try:
            if post.seq < self._below or post.seq in self._batches or post.seq in self._ended:
                return None
            if post.slot == NO_SLOT:
                memory = _map(descriptors[0], writable=True)
                sources = [memory, *(_map(fd, writable=False) for fd in descriptors[1:])]
            else:
                memory = self._ring.slot(post.slot)
                sources = [memory]
                place = self._ring.place(post.slot)
        finally:
            for fd in descriptors:
                os.close(fd)
        batch = self._batches[post.seq] = Batch(post, memory, sources, self._most_rows, place)
        return batch

    def find(self, request: int) -> tuple[Batch, int]:
        """The batch of a request, and which of its requests that is."""
        seq, number = divmod(request, _PARTS)
        return self._batches[seq], number

    def remove(self, seq: int) -> Batch | None:
        """End a batch: it was answered, given up or abandoned. None for one that is not there."""
        batch = self._batches.pop(seq, None)
        if batch is not None:
            self._ended.add(seq)
            self._ended_order.append(seq)
            if len(self._ended_order) > _REMEMBERED:
                self._ended.discard(self._ended_order.popleft())
        return batch

    def remove_below(self, seq: int) -> list[Batch]:
        """End all batches with lower sequence numbers, those to come included."""
        self._below = max(self._below, seq)
        return [self._batches.pop(old) for old in sorted(self._batches) if old < seq]


def _map(fd: int, *, writable: bool) -> memoryview:
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return memoryview(mmap.mmap(fd, 0, mmap.MAP_SHARED, protection))
