"""A state as one file that is read back by the same machine and version: header, then the tensors' bytes.

Made for memory (tmpfs), so it has no checksums and nothing is forced to a disk. An existing file is written over in
place, because taking new pages from the kernel costs more than the copy itself. What is kept goes into a checkpoint.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from checkpoints.tree import unflatten

_LENGTH = struct.Struct("<Q")
_WRITE_BYTES = 16 << 20


def size_of(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes that a file of them takes, but for its header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write_state(path: Path, tree: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write what flatten() made of a state over the file at `path`, or into a new one. Raises OSError."""
    rows = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
    header = json.dumps([tree, rows], allow_nan=False).encode()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = _write(fd, memoryview(_LENGTH.pack(len(header)) + header))
        for tensor in tensors.values():
            end += _write(fd, _bytes_of(tensor))
        os.ftruncate(fd, end)
    finally:
        os.close(fd)


def reserve_file(path: Path, size_bytes: int) -> None:
    """Make `path` a file that has its memory, for write_state() to write over. Raises OSError; then there is none.

    It is written to: what posix_fallocate() gives has its pages, which a virtual machine may not have yet.
    """
    zeros = memoryview(bytes(min(size_bytes, _WRITE_BYTES)))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for begin in range(0, size_bytes, _WRITE_BYTES):
            _write(fd, zeros[: size_bytes - begin])
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)


def read_state(path: Path) -> Any:
    """The state of the file at `path`, on the CPU. Raises OSError, or ValueError when it is not such a file."""
    with path.open("rb", buffering=0) as file:
        (length,) = _LENGTH.unpack(_fill(file, bytearray(_LENGTH.size)))
        if length > path.stat().st_size:
            raise ValueError(f"{path} is not the file of a state")
        tree, rows = json.loads(_fill(file, bytearray(length)))
        tensors = {name: _read(file, getattr(torch, dtype), shape) for name, dtype, shape in rows}
    return unflatten(tree, tensors.__getitem__)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """A copy is made only of what is on a device or not contiguous."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().view(-1)  # [numel]
    if not flat.numel():
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's stub lacks the buffer protocol


def _write(fd: int, data: memoryview) -> int:
    done = 0
    while done < len(data):
        done += os.write(fd, data[done : done + _WRITE_BYTES])
    return done


def _read(file: Any, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    flat = torch.empty(math.prod(shape), dtype=dtype)  # [numel]
    if flat.numel():
        _fill(file, flat.view(torch.uint8).numpy())
    return flat.view(shape)


def _fill(file: Any, buffer: Any) -> Any:
    """Fill `buffer` to its end."""
    view, done = memoryview(buffer), 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise ValueError(f"{file.name} ends too early")
        done += count
    return buffer
