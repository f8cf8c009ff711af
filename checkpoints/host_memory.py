"""Host memory for states: page-aligned, in huge pages where the kernel has them, pinned for CUDA.

Taking memory page by page costs several times what copying into it costs (1 GiB here: 0.3 to 2 s with pages of 4 KiB,
0.06 s with huge ones, 0.07 s for the copy), so one buffer is taken once and used again.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import weakref
from typing import Any

from checkpoints.errors import CheckpointError
from checkpoints.shard_format import Row

logger = logging.getLogger(__name__)

_HOST_REGISTER_PORTABLE = 1  # pinned for every CUDA device, not only for the current one


class HostBuffer:
    """A flat buffer of bytes, seen as memory and as tensors.

    Args:
        size_bytes: its size, at least 1.
        pinned_for: a CUDA device; the memory is page-locked then, which makes copies from there faster. Where the
            system refuses that, it is not.
        forked: whether the child of a fork has it, too. False for what is written to disks: memory that a fork shares
            must not be written past the page cache at that moment (open(2), O_DIRECT), and a child that lives on would
            make each later copy into it take new memory.
        way_out: what to do, for the message when there is no memory.

    Raises:
        CheckpointError: if there is no memory.
    """

    def __init__(self, size_bytes: int, *, pinned_for: Any = None, forked: bool = True, way_out: str = "") -> None:
        self.size_bytes = size_bytes
        try:
            self._memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise CheckpointError(f"no memory for {size_bytes >> 20} MiB of a state ({error}){way_out}") from error
        _advise(self._memory, "MADV_HUGEPAGE")
        if not forked:
            _advise(self._memory, "MADV_DONTFORK")
        self.view = memoryview(self._memory)
        if pinned_for is not None:
            self._pin(pinned_for)

    def _pin(self, device: Any) -> None:
        """Page-lock what is there already: memory that torch pins is rounded up to the next power of two."""
        import torch

        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        cudart: Any = torch.cuda.cudart
        with torch.cuda.device(device):  # a thread of its own would use, and so set up, device 0
            code = int(cudart().cudaHostRegister(address, self.size_bytes, _HOST_REGISTER_PORTABLE))
        if code == 0:
            weakref.finalize(self, _unpin, address, device, os.getpid()).atexit = False
            return
        size_mib = self.size_bytes >> 20
        logger.warning("no page-locked memory for %d MiB of a state (CUDA error %d): copies are slower", size_mib, code)
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device=device)  # takes the error that CUDA would tell to the next launch of a kernel

    def tensor(self, row: Row, begin: int = 0) -> Any:
        """The tensor of a row whose shard's data begins at byte `begin`; it keeps the buffer's memory alive."""
        import torch

        dtype = getattr(torch, row.dtype)
        if row.size_bytes == 0:
            return torch.empty(row.shape, dtype=dtype)
        # A storage of its own for each tensor, so that saving one elsewhere does not take the others along.
        count = row.size_bytes // torch.empty((), dtype=dtype).element_size()
        flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=begin + row.begin)  # [numel]
        return flat.view(row.shape)

    def touch(self) -> None:
        """Take the memory now, with the threads of torch, so that the first copy into it does not wait for pages."""
        import torch

        torch.frombuffer(self.view, dtype=torch.uint8).zero_()


def _advise(memory: mmap.mmap, advice: str) -> None:
    if hasattr(mmap, advice):
        with contextlib.suppress(OSError):  # a kernel without it: slower, otherwise the same
            memory.madvise(getattr(mmap, advice))


def _unpin(address: int, device: Any, pid: int) -> None:
    import torch

    if os.getpid() != pid:
        return  # the child of a fork, which has no CUDA
    cudart: Any = torch.cuda.cudart
    with torch.cuda.device(device):
        cudart().cudaHostUnregister(address)
