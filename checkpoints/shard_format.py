"""The format of a shard: a safetensors file with the state's tree in its metadata.

    8 bytes      length of the header, little endian
    header       JSON: each tensor's dtype, shape and place; the tree of the state; spaces up to a page
    data         the tensors' bytes without gaps, widest elements first, so that each is aligned

Invariant: the data begins at a multiple of PAGE_BYTES of the file, so that it can be written past the page cache; and
what a parsed header says fills the data exactly. Nothing is ever unpickled.
Format: https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from checkpoints.errors import StateNotSupported
from checkpoints.tree import RESERVED, flatten

HEADER_LIMIT_BYTES = 100 << 20
PREFIX_BYTES = 8
PAGE_BYTES = 4096
_TREE = "edl.tree"
_MOST_DIMENSIONS = 64

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


@dataclass(frozen=True)
class Row:
    """A tensor in a shard: its name, torch dtype name, shape, and the place of its bytes in the data."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size_bytes: int


@dataclass(frozen=True)
class FlatState:
    """A state taken apart: the tree as JSON text, and in file order the rows with the live tensors."""

    tree: str
    rows: tuple[Row, ...]
    tensors: tuple[Any, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return self.rows[-1].begin + self.rows[-1].size_bytes if self.rows else 0

    def header(self) -> bytes:
        """The file's bytes before the data."""
        found: dict[str, Any] = {RESERVED: {_TREE: self.tree}}
        for row in self.rows:
            stored = _DTYPES[row.dtype][0]
            end = row.begin + row.size_bytes
            found[row.key] = {"dtype": stored, "shape": list(row.shape), "data_offsets": [row.begin, end]}
        text = json.dumps(found).encode()
        text += b" " * (-(len(text) + PREFIX_BYTES) % PAGE_BYTES)
        return struct.pack("<Q", len(text)) + text


def take_apart(state: Any, name: str) -> FlatState:
    """Flatten a state; the tensors are the state's own, not copies.

    Args:
        state: what `state_dict()` gave.
        name: of the state, for messages.

    Raises:
        StateNotSupported: if it holds something that cannot be stored.
    """
    tree, tensors = flatten(state, name)
    widths = {key: _width(tensor, f"{name}.{key}") for key, tensor in tensors.items()}
    rows, begin = [], 0
    for key in sorted(tensors, key=lambda key: -widths[key]):
        tensor = tensors[key]
        size_bytes = tensor.numel() * widths[key]
        rows.append(Row(key, _dtype_name(tensor), tuple(tensor.shape), begin, size_bytes))
        begin += size_bytes
    return FlatState(json.dumps(tree, allow_nan=False), tuple(rows), tuple(tensors[row.key] for row in rows))


def _dtype_name(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _width(tensor: Any, where: str) -> int:
    """Bytes of an element; refuses what has no name in a file."""
    stored = _DTYPES.get(_dtype_name(tensor))
    if stored is None:
        raise StateNotSupported(f"state {where}: a tensor of {tensor.dtype} cannot be stored; make it of a plain type")
    return stored[1]


@dataclass(frozen=True)
class Header:
    """A parsed header: rows in file order, and the tree."""

    rows: tuple[Row, ...]
    tree: Any


def header_length(prefix: bytes | bytearray) -> int:
    """Bytes of the header, from the first PREFIX_BYTES of a file."""
    (length,) = struct.unpack("<Q", prefix)
    return int(length)


def parse_header(text: bytes | bytearray, data_bytes: int) -> Header:
    """Read a header and check that its tensors fill the data without gap or overlap.

    Raises:
        ValueError: saying what is wrong.
    """
    try:
        found = json.loads(text)
        tree = json.loads(found.pop(RESERVED)[_TREE])
        return Header(tuple(_rows(found, data_bytes)), tree)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _rows(found: dict[str, Any], data_bytes: int) -> Iterator[Row]:
    end = 0
    for key, row in sorted(found.items(), key=lambda item: (item[1]["data_offsets"], item[0])):
        name, width = _TORCH_NAMES[row["dtype"]]
        shape = tuple(row["shape"])
        if len(shape) > _MOST_DIMENSIONS or not all(type(extent) is int and 0 <= extent < 1 << 62 for extent in shape):
            raise ValueError(f"tensor {key!r} has the shape {str(shape)[:80]}")
        size_bytes = math.prod(shape) * width
        if row["data_offsets"] != [end, end + size_bytes]:
            raise ValueError(f"tensor {key!r} is not where the one before it ends")
        yield Row(key, name, shape, end, size_bytes)
        end += size_bytes
    if end != data_bytes:
        raise ValueError(f"tensors take {end} bytes of {data_bytes}")
