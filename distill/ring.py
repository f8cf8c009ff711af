"""The memory that a student's processes share: one memfd with a control page and the slots of a ring.

A slot holds one batch: a header page with the Post that announced it, the batch's tensors, then its predictions.
Slots are generous (`slot_bytes`) and cost only the pages that were written. Ownership goes from the DataLoader worker
that fills a slot, over the IO process that reads it and adds the predictions, to the trainer; only the trainer
allocates.

Invariant: a slot is given out again when nothing refers to its memory any more. The trainer's tensors of a slot share
one memoryview (its lease); when the last of them is gone, so is the lease, and the slot is free.

Not here: torch, and what a batch looks like (loaders.py).
"""

import mmap
import os
import struct
import weakref
from collections import deque
from multiprocessing import reduction
from typing import Any

from distill.io_messages import LARGEST_BYTES, NO_SLOT

PAGE_BYTES = mmap.PAGESIZE
#: sequence number and length of the message in a slot's header page
_HEADER = struct.Struct("=qi")
_FIGURES = struct.Struct("=4d")
#: predictions and inputs begin at multiples of this, so that any dtype is aligned and rows start on cache lines
ALIGNMENT_BYTES = 64


def aligned(offset: int) -> int:
    """The next offset at which a tensor may begin."""
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class Ring:
    """A mapping of the shared memory: the trainer creates it, the other processes open it by its descriptor."""

    def __init__(self, slots: int, slot_bytes: int, fd: int | None = None) -> None:
        if slot_bytes % PAGE_BYTES or slot_bytes < 2 * PAGE_BYTES:
            raise ValueError(f"slot_bytes must be a multiple of {PAGE_BYTES} and at least two of them")
        self.slots, self.slot_bytes = slots, slot_bytes
        size = PAGE_BYTES + slots * slot_bytes
        if fd is None:
            fd = os.memfd_create("edl-distill-ring", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
        self.fd = fd
        self._memory = memoryview(mmap.mmap(fd, size))

    def slot(self, index: int) -> memoryview:
        """The bytes of a slot, its header page included."""
        begin = PAGE_BYTES + index * self.slot_bytes
        return self._memory[begin : begin + self.slot_bytes]

    def control(self) -> memoryview:
        """The control page: see Control."""
        return self._memory[:PAGE_BYTES]

    def announce(self, index: int, seq: int, message: bytes) -> None:
        """Write down what was posted of a slot, to be posted again should the IO process die."""
        assert len(message) <= LARGEST_BYTES
        slot = self.slot(index)
        slot[_HEADER.size : _HEADER.size + len(message)] = message
        _HEADER.pack_into(slot, 0, seq, len(message))

    def announced(self, index: int) -> tuple[int, bytes]:
        """Sequence number and message of the batch that the slot holds; 0 and nothing for none."""
        slot = self.slot(index)
        seq, length = _HEADER.unpack_from(slot)
        return seq, bytes(slot[_HEADER.size : _HEADER.size + length])

    def clear(self, index: int) -> None:
        """Nothing is to be posted again of this slot."""
        _HEADER.pack_into(self._memory, PAGE_BYTES + index * self.slot_bytes, 0, 0)

    def close(self) -> None:
        """Close the descriptor; the memory goes with the last tensor in it."""
        os.close(self.fd)

    def __reduce__(self) -> Any:
        """For DataLoader workers that are spawned: they get a descriptor of their own."""
        return _open, (self.slots, self.slot_bytes, reduction.DupFd(self.fd))


def _open(slots: int, slot_bytes: int, descriptor: Any) -> Ring:
    return Ring(slots, slot_bytes, descriptor.detach())


class Control:
    """Figures of the trainer that the IO process reads once a second: monotonic seconds and counts, as doubles."""

    def __init__(self, ring: Ring) -> None:
        self._page = ring.control()

    def write(self, samples: float, batches: float, waited_s: float, waiting_since_s: float) -> None:
        """Samples and batches yielded, seconds waited for teachers in all, when the wait under way began (0: none)."""
        _FIGURES.pack_into(self._page, 0, samples, batches, waited_s, waiting_since_s)

    def read(self) -> tuple[float, float, float, float]:
        """The figures of write()."""
        samples, batches, waited_s, waiting_since_s = _FIGURES.unpack_from(self._page)
        return samples, batches, waited_s, waiting_since_s


class Slots:
    """Which slots are free. Lives in the trainer; the callback of a lease may run in any thread that drops a tensor."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        # The one that was freed last is taken first, so that few slots ever cost memory.
        self._free: deque[int] = deque(range(ring.slots))
        self._leases: dict[int, weakref.ref[memoryview]] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free slot for a batch to come, NO_SLOT when there is none."""
        try:
            return self._free.popleft()
        except IndexError:
            return NO_SLOT

    def lend(self, slot: int, memory: memoryview) -> None:
        """The slot is free again when nothing refers to `memory`, one view of it, any more."""
        self._leases[slot] = weakref.ref(memory, lambda _: self._free.appendleft(slot))

    def give_back(self, slot: int) -> None:
        """Free a slot that was not leased."""
        if slot != NO_SLOT:
            self._free.appendleft(slot)
