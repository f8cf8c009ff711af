"""Reading a shard: every byte goes through the checksum, which a thread of its own computes beside the reading.

Invariant: nothing is returned of a file that does not match its size and checksum.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import xxhash

from checkpoints.drivers.base import CHUNK_BYTES, Driver, Reader
from checkpoints.errors import CheckpointDamaged, CheckpointNotFound
from checkpoints.host_memory import HostBuffer
from checkpoints.layout import Shard
from checkpoints.shard_format import HEADER_LIMIT_BYTES, PREFIX_BYTES, Header, Row, header_length, parse_header
from checkpoints.tree import unflatten

#: Scratch buffers when nothing is kept: small enough to stay in the processor's cache.
_SCRATCH_BYTES = 1 << 20
#: Files below are hashed where they are read: a thread would cost more.
_THREAD_FROM_BYTES = 32 << 20


class _Hash:
    """XXH3 of chunks in order; in a thread for large files, so that reading goes on meanwhile."""

    def __init__(self, threaded: bool) -> None:
        self._hash = xxhash.xxh3_128()
        self._chunks: queue.Queue[memoryview | None] = queue.Queue(maxsize=8)
        self._thread = threading.Thread(target=self._run, name="edl-checkpoint-hash", daemon=True) if threaded else None
        if self._thread is not None:
            self._thread.start()

    def _run(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            self._hash.update(chunk)

    def update(self, chunk: memoryview) -> None:
        """Take a chunk, whose bytes must stay as they are until the end."""
        if self._thread is None:
            self._hash.update(chunk)
        else:
            self._chunks.put(chunk)

    def end(self) -> str:
        """The checksum of all; ends the thread."""
        if self._thread is not None:
            self._chunks.put(None)
            self._thread.join()
            self._thread = None
        return f"xxh3:{self._hash.hexdigest()}"


class _HashingReader:
    """Fills buffers to their end and hashes what came; a file that ends early is damaged."""

    def __init__(self, reader: Reader, name: str, *, threaded: bool) -> None:
        self._reader = reader
        self._name = name
        self._chunk_bytes: int = getattr(reader, "chunk_bytes", CHUNK_BYTES)
        self._hash = _Hash(threaded)
        self.size_bytes = 0

    def fill(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            part = buffer[done : done + self._chunk_bytes]
            count = self._reader.readinto(part)
            if count == 0:
                raise CheckpointDamaged(f"shard {self._name} ends at byte {self.size_bytes}")
            self._hash.update(part[:count])
            self.size_bytes += count
            done += count

    def checksum(self) -> str:
        return self._hash.end()


@contextmanager
def _opened(driver: Driver, path: str, shard: Shard, *, threaded: bool = False) -> Iterator[_HashingReader]:
    """A shard open for reading; leaving it without an error checks that all was read and that the checksum fits."""
    try:
        reader = driver.open_read(path)
    except CheckpointNotFound as error:
        raise CheckpointDamaged(f"shard {shard.name} is missing") from error
    source = _HashingReader(reader, shard.name, threaded=threaded)
    try:
        yield source
        if source.size_bytes != shard.size_bytes or reader.readinto(memoryview(bytearray(1))):
            raise CheckpointDamaged(f"shard {shard.name} is not {shard.size_bytes} bytes long")
        if source.checksum() != shard.checksum:
            raise CheckpointDamaged(f"shard {shard.name} does not match its checksum {shard.checksum}")
    finally:
        source.checksum()
        reader.close()


def check_shard(driver: Driver, path: str, shard: Shard, progress: Callable[[int], None] = lambda _: None) -> None:
    """Read the whole file and compare size and checksum; torch is not needed.

    Args:
        progress: called with the bytes of each piece when it was read.

    Raises:
        CheckpointDamaged: if it is missing or does not match.
    """
    with _opened(driver, path, shard) as source:
        scratch = memoryview(bytearray(min(_SCRATCH_BYTES, max(shard.size_bytes, 1))))
        while source.size_bytes < shard.size_bytes:
            piece = scratch[: min(len(scratch), shard.size_bytes - source.size_bytes)]
            source.fill(piece)
            progress(len(piece))


def read_shard(driver: Driver, path: str, shard: Shard, device: str) -> Any:
    """Read a state back into new memory and verify every byte of it.

    Args:
        device: where the tensors go, such as "cpu" or "cuda:0".

    Raises:
        CheckpointDamaged: if the file is missing, cut, altered, or not a shard.
    """
    with _opened(driver, path, shard, threaded=shard.size_bytes >= _THREAD_FROM_BYTES) as source:
        header = _read_header(source, shard)
        data_bytes = shard.size_bytes - source.size_bytes
        if data_bytes:
            buffer = HostBuffer(data_bytes, way_out=": load fewer objects at a time")
            source.fill(buffer.view)
    try:
        stored = {row.key: buffer.tensor(row) if row.size_bytes else _empty(row) for row in header.rows}
    except (RuntimeError, OverflowError) as error:
        raise CheckpointDamaged(f"shard {shard.name} has a tensor that cannot be: {error}") from error
    tensors = {key: tensor.to(device) for key, tensor in stored.items()}
    try:
        return unflatten(header.tree, tensors.__getitem__)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointDamaged(f"shard {shard.name} has a state tree that cannot be read: {error}") from error


def read_into(driver: Driver, path: str, shard: Shard, tree: Any, targets: Mapping[str, Any]) -> bool:
    """Read the tensors of a state straight over others, after `check_shard` has verified the file.

    Args:
        tree: of the state that the targets are of, as `tree.flatten` gives it.
        targets: contiguous CPU tensors by name.

    Returns:
        False, and nothing was touched, if the shard has another tree, other names, shapes or dtypes than the targets.

    Raises:
        CheckpointDamaged: if the file has changed since it was verified; the targets hold a mixture then.
    """
    with _opened(driver, path, shard, threaded=shard.size_bytes >= _THREAD_FROM_BYTES) as source:
        header = _read_header(source, shard)
        if header.tree != json.loads(json.dumps(tree)) or not _fits(header, targets):
            _skip(source, shard)
            return False
        for row in header.rows:
            if row.size_bytes:
                source.fill(_memory(targets[row.key]))
    return True


def _fits(header: Header, targets: Mapping[str, Any]) -> bool:
    if {row.key for row in header.rows} != set(targets):
        return False
    return all(
        tuple(targets[row.key].shape) == row.shape and str(targets[row.key].dtype) == f"torch.{row.dtype}"
        for row in header.rows
    )


def _memory(tensor: Any) -> memoryview:
    """The bytes of a contiguous CPU tensor, to be written to."""
    import torch

    return memoryview(tensor.detach().view(-1).view(torch.uint8).numpy())


def _empty(row: Row) -> Any:
    import torch

    return torch.empty(row.shape, dtype=getattr(torch, row.dtype))


def _read_header(source: _HashingReader, shard: Shard) -> Header:
    prefix = bytearray(PREFIX_BYTES)
    source.fill(memoryview(prefix))
    length = header_length(prefix)
    # Checked before the memory is taken: a flipped bit here must not ask for an exabyte.
    if length > min(HEADER_LIMIT_BYTES, shard.size_bytes - PREFIX_BYTES):
        raise CheckpointDamaged(f"shard {shard.name} has a header of {length} bytes")
    text = bytearray(length)
    source.fill(memoryview(text))
    try:
        return parse_header(text, shard.size_bytes - PREFIX_BYTES - length)
    except ValueError as error:
        raise CheckpointDamaged(f"shard {shard.name} has a header that cannot be read: {error}") from error


def _skip(source: _HashingReader, shard: Shard) -> None:
    """Read to the end without keeping anything."""
    while source.size_bytes < shard.size_bytes:
        source.fill(memoryview(bytearray(min(_SCRATCH_BYTES, shard.size_bytes - source.size_bytes))))
