"""Host memory for states: page-aligned, in huge pages where the kernel has them, pinned for CUDA.

Taking memory page by page costs several times what copying into it costs (1 GiB here: 0.3 to 2 s with pages of 4 KiB,
0.06 s with huge ones, 0.07 s for the copy), so one buffer is taken once and used again.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

from checkpoints.errors import CheckpointError
from checkpoints.shard_format import Row


class HostBuffer:
    """A flat buffer of bytes, seen as memory and as tensors.

    Args:
        size_bytes: its size, at least 1.
        pinned: page-locked, which makes copies from a CUDA device faster.

    Raises:
        CheckpointError: if there is no memory.
    """

    def __init__(self, size_bytes: int, *, pinned: bool = False) -> None:
        self.size_bytes = size_bytes
        self.pinned = pinned
        self._memory: Any
        if pinned:
            import torch

            self._memory = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
            self.view = memoryview(self._memory.numpy())
        else:
            try:
                self._memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except (OSError, OverflowError) as error:
                raise CheckpointError(
                    f"no memory for {size_bytes >> 20} MiB of a state ({error}): async_save=False makes no copy"
                ) from error
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):  # without huge pages it is slower to take, otherwise the same
                    self._memory.madvise(mmap.MADV_HUGEPAGE)
            self.view = memoryview(self._memory)

    def tensor(self, row: Row, begin: int = 0) -> Any:
        """The tensor of a row whose shard's data begins at byte `begin`; it keeps the buffer alive."""
        import torch

        dtype = getattr(torch, row.dtype)
        if row.size_bytes == 0:
            return torch.empty(row.shape, dtype=dtype)
        at = begin + row.begin
        if self.pinned:
            flat = self._memory[at : at + row.size_bytes].view(dtype)  # [numel]
        else:
            # A storage of its own for each tensor, so that saving one elsewhere does not take the others along.
            count = row.size_bytes // torch.empty((), dtype=dtype).element_size()
            flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=at)  # [numel]
        return flat.view(row.shape)

    def touch(self) -> None:
        """Take the memory now, with the threads of torch, so that the first copy into it does not wait for pages."""
        import torch

        torch.frombuffer(self.view, dtype=torch.uint8).zero_()
