"""Memory that requests are received into, used again and again.

Fresh memory costs a page fault every 4 KiB, which for a batch of images is more than receiving it. Invariant: a buffer
belongs to one request from `take` until `give_back`, and all that are taken together stay below the limit.
Not for several threads: the thread of the server takes them and gives them back.
"""

import mmap
from collections import defaultdict
from dataclasses import dataclass

#: tensors begin at multiples of this: their elements are aligned, whatever the length of the head before them
ALIGNMENT = 64
_SMALLEST_BYTES = 64 * 1024
_HUGE_PAGE_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """Page-aligned memory of `len(view)` bytes."""

    view: memoryview


class Buffers:
    """Buffers by size; `limit_bytes` bounds those in use, and what is kept for later."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._free: dict[int, list[Buffer]] = defaultdict(list)
        self._free_bytes = 0
        self.used_bytes = 0

    def take(self, size_bytes: int) -> Buffer | None:
        """A buffer of at least `size_bytes`; None if the limit does not allow it now."""
        size = _rounded(size_bytes)
        if self.used_bytes + size > self._limit_bytes:
            return None
        self.used_bytes += size
        free = self._free[size]
        if free:
            self._free_bytes -= size
            return free.pop()
        return Buffer(memoryview(_allocated(size)))

    def give_back(self, buffer: Buffer) -> None:
        """End the use of a buffer: its bytes may change from now on."""
        size = len(buffer.view)
        self.used_bytes -= size
        if self._free_bytes + size <= self._limit_bytes:
            self._free_bytes += size
            self._free[size].append(buffer)


def _rounded(size_bytes: int) -> int:
    """To a few sizes only, at most a quarter more than asked, so that buffers fit the next request as well."""
    size = max(size_bytes, _SMALLEST_BYTES)
    step = max(1 << (size - 1).bit_length() - 3, mmap.PAGESIZE)
    return -(-size // step) * step


def _allocated(size_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size_bytes >= _HUGE_PAGE_BYTES:
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
