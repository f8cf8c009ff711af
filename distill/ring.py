"""The memory that a student's processes share: one memfd with a control page and the slots of a ring.

A slot holds one batch: a header page with the Post that announced it and the answer to that, the batch's tensors, then
its predictions.
Slots are generous (`slot_bytes`) and cost only the pages that were written. Ownership goes from the DataLoader worker
that fills a slot, over the IO process that reads it and adds the predictions, to the trainer; only the trainer
allocates.

Invariant: a slot is given out again when nothing refers to its memory any more, which is what its lease says.

Not here: torch, what a batch looks like (slot_batches.py) and who refers to it (slot_tensors.py).
"""

import mmap
import os
import platform
import struct
import threading
from collections import deque
from multiprocessing import reduction
from typing import Any, Protocol

from distill.io_messages import LARGEST_BYTES, NO_SLOT

PAGE_BYTES = mmap.PAGESIZE
#: sequence number and length of the message in a slot's header page
_HEADER = struct.Struct("=qi")
_FIGURES = struct.Struct("=5d")
#: place of the answer in a slot's header page; its sequence number, then latency in seconds and length of its message
_ANSWER_AT, _ANSWER_END = 3072, 4096
_SEQ, _ANSWER = struct.Struct("=q"), struct.Struct("=qdi")
#: processors on which others see stores in the order in which they were made: only there an answer in memory is safe
_STORES_IN_ORDER = platform.machine() in ("x86_64", "AMD64", "i686")
_fence = threading.Lock()
#: predictions and inputs begin at multiples of this, so that any dtype is aligned and rows start on cache lines
ALIGNMENT_BYTES = 64


def aligned(offset: int) -> int:
    """The next offset at which a tensor may begin."""
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def fence() -> None:
    """What was written before is visible to others before anything is read after it: an atomic operation sees to it."""
    with _fence:
        pass


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

    def place(self, index: int) -> tuple[int, int]:
        """The descriptor in which a slot lies, and where it begins there."""
        return self.fd, PAGE_BYTES + index * self.slot_bytes

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

    def answer(self, index: int, seq: int, latency_s: float, message: bytes) -> bool:
        """Write down the answer to batch `seq`, when its predictions are written; False if that cannot be done here."""
        begin = PAGE_BYTES + index * self.slot_bytes + _ANSWER_AT
        body = begin + _ANSWER.size
        if not _STORES_IN_ORDER or body + len(message) > begin - _ANSWER_AT + _ANSWER_END:
            return False
        self._memory[body : body + len(message)] = message
        _ANSWER.pack_into(self._memory, begin, 0, latency_s, len(message))
        _SEQ.pack_into(self._memory, begin, seq)  # last: who finds it, finds all
        return True

    def answered(self, index: int, seq: int) -> tuple[float, bytes] | None:
        """Latency and message of the answer to batch `seq`, None while there is none."""
        begin = PAGE_BYTES + index * self.slot_bytes + _ANSWER_AT
        found, latency_s, length = _ANSWER.unpack_from(self._memory, begin)
        if found != seq:
            return None
        body = begin + _ANSWER.size
        return latency_s, bytes(self._memory[body : body + length])

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
    """Figures of the trainer that the IO process reads: monotonic seconds and counts, as doubles."""

    def __init__(self, ring: Ring) -> None:
        self._page = ring.control()

    def write(self, samples: float, batches: float, waited_s: float, waiting_since_s: float, awaited: int = 0) -> None:
        """Samples and batches yielded, seconds waited for teachers in all, when the wait under way began, for what.

        The last two, a time and a sequence number, are 0 while it does not wait.
        """
        _FIGURES.pack_into(self._page, 0, samples, batches, waited_s, waiting_since_s, awaited)

    def read(self) -> tuple[float, float, float, float]:
        """The figures of write(), but for the last."""
        samples, batches, waited_s, waiting_since_s, _ = _FIGURES.unpack_from(self._page)
        return samples, batches, waited_s, waiting_since_s

    def awaits(self, seq: int) -> bool:
        """Whether the trainer waits for this batch."""
        return bool(_FIGURES.unpack_from(self._page)[4] == seq)


class Lease(Protocol):
    """What a batch that was given out refers to."""

    @property
    def free(self) -> bool:
        """Whether nothing refers to the slot any more."""


class Slots:
    """Which slots are free. Lives in the trainer, on its thread."""

    def __init__(self, ring: Ring) -> None:
        # The one that was freed last is taken first, so that few slots ever cost memory.
        self._free: deque[int] = deque(range(ring.slots))
        self._lent: dict[int, Lease] = {}

    @property
    def free(self) -> int:
        self._take_back()
        return len(self._free)

    def take(self) -> int:
        """A free slot for a batch to come, NO_SLOT when there is none."""
        self._take_back()
        try:
            return self._free.popleft()
        except IndexError:
            return NO_SLOT

    def lend(self, slot: int, lease: Lease) -> None:
        """The slot is free again when its lease is."""
        self._lent[slot] = lease

    def give_back(self, slot: int) -> None:
        """Free a slot that was not lent."""
        if slot != NO_SLOT:
            self._free.appendleft(slot)

    def _take_back(self) -> None:
        for slot in [slot for slot, lease in self._lent.items() if lease.free]:
            del self._lent[slot]
            self._free.appendleft(slot)
