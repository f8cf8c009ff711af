"""Writing a shard: header and data streamed through a checksum into a new file.

Data comes from a source: a state in memory of our own (Staged), or the live state through one small buffer (Streamed).
Chunks are large, so that a thread that writes beside a busy Python program seldom asks for its interpreter.

Invariant: every byte of the file goes through the checksum, and through it first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import xxhash

from checkpoints.drivers.base import CHUNK_BYTES, Driver, Writer
from checkpoints.errors import CheckpointDamaged
from checkpoints.host_memory import HostBuffer
from checkpoints.layout import Shard
from checkpoints.shard_format import FlatState, Row

#: Memory that a save needs which copies nothing beforehand.
STREAM_BYTES = 32 << 20


class Source(Protocol):
    """What a shard is written from; it can be read again, for another try."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the data."""

    def header(self) -> bytes:
        """The bytes before the data."""

    def chunks(self) -> Iterator[memoryview]:
        """The data; each chunk is valid until the next one is asked for."""


class Staged:
    """A state whose tensors were copied into a host buffer, one after another from byte `begin`."""

    def __init__(self, state: FlatState, buffer: HostBuffer, begin: int) -> None:
        # The live tensors are not kept: they change while this is written.
        self._state = FlatState(state.tree, state.rows, ())
        self.size_bytes = state.data_bytes
        self._view = buffer.view[begin : begin + self.size_bytes]

    def header(self) -> bytes:
        """See Source."""
        return self._state.header()

    def chunks(self) -> Iterator[memoryview]:
        """See Source."""
        yield self._view


class Streamed:
    """The live state, packed chunk by chunk into a buffer that all shards of a save share."""

    def __init__(self, state: FlatState, buffer: HostBuffer) -> None:
        self._state = state
        self.size_bytes = state.data_bytes
        self._buffer = buffer

    def header(self) -> bytes:
        """See Source."""
        return self._state.header()

    def chunks(self) -> Iterator[memoryview]:
        """See Source."""
        filled = 0
        target = self._bytes() if self.size_bytes else None
        for tensor in self._state.tensors:
            flat = _flat_bytes(tensor)  # [numel * width]
            done, count = 0, 0 if flat is None else flat.numel()
            while done < count:
                step = min(count - done, self._buffer.size_bytes - filled)
                target[filled : filled + step].copy_(flat[done : done + step])  # type: ignore[index]
                filled, done = filled + step, done + step
                if filled == self._buffer.size_bytes:
                    yield self._buffer.view
                    filled = 0
        if filled:
            yield self._buffer.view[:filled]

    def _bytes(self) -> Any:
        return self._buffer.tensor(Row("", "uint8", (self._buffer.size_bytes,), 0, self._buffer.size_bytes))


def _flat_bytes(tensor: Any) -> Any:
    """A tensor's bytes as a flat tensor where it lies; copied only if it is not contiguous. None if it has none."""
    import torch

    if tensor.numel() == 0:
        return None
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)  # [numel]
    if flat.stride(0) != 1:  # one element cut out of more counts as contiguous and keeps its stride
        flat = flat.as_strided((flat.numel(),), (1,))
    return flat.view(torch.uint8)


class _HashingWriter:
    """Cuts data into the chunks that the writer wants, hashes each and hands it on."""

    def __init__(self, writer: Writer, progress: Callable[[int], None]) -> None:
        self._writer = writer
        self._chunk_bytes: int = getattr(writer, "chunk_bytes", CHUNK_BYTES)
        self._progress = progress
        self._hash = xxhash.xxh3_128()
        self.size_bytes = 0

    def write(self, data: memoryview) -> None:
        for start in range(0, len(data), self._chunk_bytes):
            chunk = data[start : start + self._chunk_bytes]
            self._hash.update(chunk)
            self._writer.write(chunk)
            self.size_bytes += len(chunk)
            self._progress(len(chunk))

    def checksum(self) -> str:
        return f"xxh3:{self._hash.hexdigest()}"


def write_shard(
    driver: Driver, path: str, name: str, source: Source, progress: Callable[[int], None] = lambda _: None
) -> Shard:
    """Stream one state into a new file; on any error the file is dropped as far as possible.

    Args:
        driver: where to write.
        path: the file's path under the driver's root.
        name: the name under which the manifest will list it.
        source: the state.
        progress: called with the bytes of each chunk when it is written.

    Returns:
        The shard with its size and checksum, verified against the size that the file system reports.

    Raises:
        CheckpointError: what the driver raises.
    """
    header = source.header()
    writer = driver.open_write(path)
    try:
        out = _HashingWriter(writer, progress)
        out.write(memoryview(header))
        for chunk in source.chunks():
            out.write(chunk)
        writer.commit()
    except BaseException:
        writer.abort()
        raise
    stored = driver.info(path).size_bytes
    if stored != out.size_bytes:
        raise CheckpointDamaged(f"{path}: wrote {out.size_bytes} bytes, the file system reports {stored}", url=path)
    return Shard(name, out.size_bytes, out.checksum())
