"""One shard: a safetensors file with the state's tree in its metadata, streamed with its checksum.

The file is eight bytes of header length, a JSON header, and the tensors' bytes without gaps; the safetensors package
can open it. It is written and read here tensor by tensor, so that nothing is held twice and the checksum is computed
on the way. Nothing is ever unpickled.

Invariant: `write_shard` and `read_shard` see every byte of the file, and so does the checksum.
Format: https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import xxhash

from checkpoints.drivers.base import CHUNK_BYTES, Driver, Reader, Writer
from checkpoints.errors import CheckpointDamaged, CheckpointNotFound, StateNotSupported
from checkpoints.layout import Shard
from checkpoints.tree import flatten, unflatten

HEADER_LIMIT_BYTES = 100 << 20
_TREE = "edl.tree"

#: torch dtype name to safetensors dtype name and bytes per element.
_DTYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "complex64": ("C64", 8),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint64": ("U64", 8),
    "uint32": ("U32", 4),
    "uint16": ("U16", 2),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
_TORCH_NAMES = {stored: (name, width) for name, (stored, width) in _DTYPES.items()}


class _HashingWriter:
    """Cuts data into chunks, hashes each and hands it on."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._hash = xxhash.xxh3_128()
        self.size_bytes = 0

    def write(self, data: memoryview) -> None:
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = data[start : start + CHUNK_BYTES]
            self._hash.update(chunk)
            self._writer.write(chunk)
            self.size_bytes += len(chunk)

    def checksum(self) -> str:
        return f"xxh3:{self._hash.hexdigest()}"


class _HashingReader:
    """Fills buffers to their end and hashes what came; a file that ends early is damaged."""

    def __init__(self, reader: Reader, name: str) -> None:
        self._reader = reader
        self._hash = xxhash.xxh3_128()
        self._name = name
        self.size_bytes = 0

    def fill(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            part = buffer[done : done + CHUNK_BYTES]
            count = self._reader.readinto(part)
            if count == 0:
                raise CheckpointDamaged(f"shard {self._name} ends at byte {self.size_bytes}")
            self._hash.update(part[:count])
            self.size_bytes += count
            done += count

    def checksum(self) -> str:
        return f"xxh3:{self._hash.hexdigest()}"


def write_shard(driver: Driver, path: str, name: str, state: Any) -> Shard:
    """Stream one state into a new file; on any error the file is dropped as far as possible.

    Args:
        driver: where to write.
        path: the file's path under the driver's root.
        name: the name under which the manifest will list it.
        state: what `state_dict()` gave.

    Returns:
        The shard with its size and checksum, verified against the size that the file system reports.

    Raises:
        StateNotSupported: if the state holds something that cannot be stored; nothing is written then.
        CheckpointError: what the driver raises.
    """
    header, tensors = _header(state, name)
    writer = driver.open_write(path)
    try:
        out = _HashingWriter(writer)
        out.write(memoryview(header))
        for tensor in tensors:
            out.write(_bytes_of(tensor))
        writer.commit()
    except BaseException:
        writer.abort()
        raise
    stored = driver.info(path).size_bytes
    if stored != out.size_bytes:
        raise CheckpointDamaged(f"{path}: wrote {out.size_bytes} bytes, the file system reports {stored}", url=path)
    return Shard(name, out.size_bytes, out.checksum())


def _header(state: Any, name: str) -> tuple[bytes, list[Any]]:
    """The bytes before the tensors, and the tensors in file order: widest elements first, so that all are aligned."""
    tree, tensors = flatten(state)
    rows = sorted(tensors.items(), key=lambda item: -_stored_dtype(item[1], f"{name}: {item[0]}")[1])
    header: dict[str, Any] = {"__metadata__": {_TREE: json.dumps(tree, allow_nan=False)}}
    end = 0
    for key, tensor in rows:
        stored, width = _stored_dtype(tensor, key)
        start, end = end, end + tensor.numel() * width
        header[key] = {"dtype": stored, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, [tensor for _, tensor in rows]


def _stored_dtype(tensor: Any, where: str) -> tuple[str, int]:
    import torch

    stored = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if stored is None or tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise StateNotSupported(
            f"state {where}: a {tensor.layout} tensor of {tensor.dtype} on {tensor.device} cannot be stored; "
            "make it dense and of a plain type"
        )
    return stored


def _bytes_of(tensor: Any) -> memoryview:
    """The tensor's bytes; a copy is made only of one that is on a device or not contiguous."""
    import torch

    if tensor.numel() == 0:
        return memoryview(b"")
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)  # [numel]
    if flat.stride(0) != 1:  # one element cut out of more counts as contiguous and keeps its stride
        flat = flat.as_strided((flat.numel(),), (1,))
    return memoryview(flat.view(torch.uint8).numpy())  # [numel * width]


def check_shard(driver: Driver, path: str, shard: Shard) -> None:
    """Read the whole file and compare size and checksum; torch is not needed.

    Raises:
        CheckpointDamaged: if it is missing or does not match.
    """
    with _opened(driver, path, shard) as source:
        _skip(source, shard.size_bytes)


def read_shard(driver: Driver, path: str, shard: Shard, device: str) -> Any:
    """Read a state back and verify every byte of it.

    Args:
        device: where the tensors go, such as "cpu" or "cuda:0".

    Raises:
        CheckpointDamaged: if the file is missing, cut, altered, or not a shard.
    """
    with _opened(driver, path, shard) as source:
        header = _read_header(source, shard)
        tensors = {row.key: _read_tensor(source, row, device) for row in header.rows}
    try:
        return unflatten(header.tree, tensors.__getitem__)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointDamaged(f"shard {shard.name} has a state tree that cannot be read: {error}") from error


@contextmanager
def _opened(driver: Driver, path: str, shard: Shard) -> Iterator[_HashingReader]:
    """A shard open for reading; leaving it without an error checks that all was read and that the checksum fits."""
    try:
        reader = driver.open_read(path)
    except CheckpointNotFound as error:
        raise CheckpointDamaged(f"shard {shard.name} is missing") from error
    source = _HashingReader(reader, shard.name)
    try:
        yield source
        if source.size_bytes != shard.size_bytes or reader.readinto(memoryview(bytearray(1))):
            raise CheckpointDamaged(f"shard {shard.name} is not {shard.size_bytes} bytes long")
        if source.checksum() != shard.checksum:
            raise CheckpointDamaged(f"shard {shard.name} does not match its checksum {shard.checksum}")
    finally:
        reader.close()


@dataclass(frozen=True)
class _Row:
    key: str
    dtype: str
    shape: list[int]
    size_bytes: int


@dataclass(frozen=True)
class _Header:
    rows: list[_Row]
    tree: Any


def _read_header(source: _HashingReader, shard: Shard) -> _Header:
    prefix = bytearray(8)
    source.fill(memoryview(prefix))
    (length,) = struct.unpack("<Q", prefix)
    # Checked before the memory is taken: a flipped bit here must not ask for an exabyte.
    if length > min(HEADER_LIMIT_BYTES, shard.size_bytes - 8):
        raise CheckpointDamaged(f"shard {shard.name} has a header of {length} bytes")
    text = bytearray(length)
    source.fill(memoryview(text))
    try:
        header = json.loads(text)
        tree = json.loads(header.pop("__metadata__")[_TREE])
        rows = list(_rows(header, shard.size_bytes - 8 - length))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointDamaged(f"shard {shard.name} has a header that cannot be read: {error}") from error
    return _Header(rows, tree)


def _rows(header: dict[str, Any], data_bytes: int) -> Iterator[_Row]:
    """The tensors in file order, which must fill the data without gap or overlap."""
    end = 0
    for key, row in sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0])):
        name, width = _TORCH_NAMES[row["dtype"]]
        shape = [int(extent) for extent in row["shape"]]
        size_bytes = math.prod(shape) * width
        if min(shape, default=0) < 0 or row["data_offsets"] != [end, end + size_bytes]:
            raise ValueError(f"tensor {key} is not where the one before it ends")
        end += size_bytes
        yield _Row(key, name, shape, size_bytes)
    if end != data_bytes:
        raise ValueError(f"tensors take {end} bytes of {data_bytes}")


def _read_tensor(source: _HashingReader, row: _Row, device: str) -> Any:
    import torch

    dtype = getattr(torch, row.dtype)
    if row.size_bytes == 0:
        return torch.empty(row.shape, dtype=dtype, device=device)
    flat = torch.empty(row.size_bytes, dtype=torch.uint8)  # [bytes]
    source.fill(memoryview(flat.numpy()))  # type: ignore[arg-type]  # numpy's stub lacks the buffer protocol
    return flat.view(dtype).reshape(row.shape).to(device)


def _skip(source: _HashingReader, size_bytes: int) -> None:
    scratch = memoryview(bytearray(min(CHUNK_BYTES, max(size_bytes, 1))))
    while source.size_bytes < size_bytes:
        source.fill(scratch[: min(len(scratch), size_bytes - source.size_bytes)])
