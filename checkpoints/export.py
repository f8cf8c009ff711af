"""The tensors of one saved state as a plain safetensors file; torch is not needed.

A shard is a safetensors file already. The exported one has the names of the state alone, and nothing of ours in its
header: `model.load_state_dict(safetensors.torch.load_file(path))` takes it.

Invariant: the file appears under its name complete, synced and verified against the checkpoint's checksum, or not at
all.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from checkpoints.drivers import Driver, opened
from checkpoints.drivers.base import CHUNK_BYTES, translated
from checkpoints.errors import CheckpointDamaged, CheckpointExists, CheckpointNotFound
from checkpoints.loader import shards_of
from checkpoints.shard_format import HEADER_LIMIT_BYTES, PREFIX_BYTES, Row, header_length, parse_header
from checkpoints.transfer import Progress, choose, no_progress, stream
from checkpoints.tree import RESERVED


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        checkpoint: name of the checkpoint.
        path: the file.
        tensors: how many it holds.
        size_bytes: bytes of the file.
        left_out: names of values of the state that are no tensors, which a safetensors file cannot hold.
    """

    checkpoint: str
    path: str
    tensors: int
    size_bytes: int
    left_out: tuple[str, ...]


def export_weights(
    url: str,
    target: str | Path,
    *,
    state: str = "model",
    checkpoint: int | str | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
    driver: str | Driver | None = None,
) -> Exported:
    """Write the tensors of a state into one local safetensors file.

    Args:
        url: the checkpoint folder.
        target: the file.
        state: under which name it was saved.
        checkpoint: its number or name; None is the newest valid one.
        overwrite: whether a file that is there may be replaced.
        progress: told of the bytes done.

    Raises:
        CheckpointExists: if the file is there and may not be replaced.
        CheckpointNotFound: if there is no such checkpoint, or it has no such state.
        CheckpointDamaged: if the shard does not match its checksum or does not parse.
        CheckpointError: what the driver or the local disk says.
    """
    path = Path(target)
    if path.exists() and not overwrite:
        raise CheckpointExists(f"{path} is there already; give another name, or --force to replace it")
    with opened(url, driver) as source:
        examined = choose(source, checkpoint)
        _, shards = shards_of(examined)
        if state not in shards:
            raise CheckpointNotFound(
                f"checkpoint {examined.attempt} in {url} has no state {state!r}: it has {', '.join(shards)}", url=url
            )
        chunks = stream(source, f"{examined.attempt}/{shards[state].name}", shards[state], progress)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with translated("write", str(path)):
                with aside.open("xb") as out:
                    tensors, left_out = _write(chunks, shards[state].size_bytes, out)
                    out.flush()
                    os.fsync(out.fileno())
                    size_bytes = out.tell()
                aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    return Exported(str(examined.attempt), str(path), tensors, size_bytes, left_out)


def _write(chunks: Iterator[memoryview], shard_bytes: int, out: BinaryIO) -> tuple[int, tuple[str, ...]]:
    """Write header and data; returns how many tensors there are, and what was left out."""
    text, rest = _take_header(chunks)
    try:
        header = parse_header(text, shard_bytes - PREFIX_BYTES - len(text))
        names = list(tensor_names(header.tree, ()))
        stored = {key: row["dtype"] for key, row in json.loads(text).items() if key != RESERVED}
        rows = {row.key: row for row in header.rows}
        plan = _Plan(rows, [(name, key) for name, key in names if key is not None])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise CheckpointDamaged(f"the shard has a header that cannot be read: {error!r}") from error
    out.write(plan.header(stored))
    begin = out.tell()
    out.write(rest)
    for chunk in chunks:
        out.write(chunk)
    for row in plan.repeated:
        _repeat(out, begin + row.begin, row.size_bytes)
    return len(plan.placed), tuple(name for name, key in names if key is None)


class _Plan:
    """Which name has which place in the data: as in the shard, and copies of tied weights at the end."""

    def __init__(self, rows: dict[str, Row], names: list[tuple[str, str]]) -> None:
        self.placed: dict[str, tuple[Row, int]] = {}
        self.repeated: list[Row] = []
        end = max((row.begin + row.size_bytes for row in rows.values()), default=0)
        taken: set[str] = set()
        for name, key in names:
            row = rows[key]
            if name in self.placed or name == RESERVED:
                name = key  # the state has this name twice, and the shard keeps them apart
            if name in self.placed:
                continue  # the same tensor twice under one name
            if key not in taken:
                taken.add(key)
                self.placed[name] = (row, row.begin)
            else:
                self.placed[name] = (row, end)
                self.repeated.append(row)
                end += row.size_bytes
        if len(taken) != len(rows):
            raise ValueError("its tensors and its tree do not go together")

    def header(self, stored: dict[str, str]) -> bytes:
        """The bytes before the data; `stored` has the dtype of each tensor as the format calls it."""
        found: dict[str, Any] = {RESERVED: {"format": "pt"}}
        for name, (row, begin) in self.placed.items():
            found[name] = {
                "dtype": stored[row.key],
                "shape": list(row.shape),
                "data_offsets": [begin, begin + row.size_bytes],
            }
        text = json.dumps(found).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


def tensor_names(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    """The path of each leaf of a state tree with the name of its tensor, None for what is no tensor.

    Raises:
        ValueError, TypeError, KeyError: if the tree is not one that `tree.flatten` makes.
    """
    kind = next((key for key in node if key != "metadata"), None) if isinstance(node, dict) else None
    if kind in ("tensor", "array"):
        yield ".".join(path) or "value", str(node[kind])
    elif kind in ("dict", "ordered", "counter"):
        for key, value in node[kind]:
            yield from tensor_names(value, (*path, str(key)))
    elif kind in ("list", "tuple"):
        for index, value in enumerate(node[kind]):
            yield from tensor_names(value, (*path, str(index)))
    else:
        yield ".".join(path) or "value", None


def _take_header(chunks: Iterator[memoryview]) -> tuple[bytes, bytes]:
    """The header's text, and what came with its last chunk."""
    got = bytearray()
    for chunk in chunks:
        got += chunk
        if len(got) >= PREFIX_BYTES:
            length = header_length(got[:PREFIX_BYTES])
            if length > HEADER_LIMIT_BYTES:
                raise CheckpointDamaged(f"the shard has a header of {length} bytes")
            if len(got) >= PREFIX_BYTES + length:
                return bytes(got[PREFIX_BYTES : PREFIX_BYTES + length]), bytes(got[PREFIX_BYTES + length :])
    raise CheckpointDamaged("the shard ends in its header")


def _repeat(out: BinaryIO, begin: int, size_bytes: int) -> None:
    """Append a part of the file that was written before."""
    with open(out.name, "rb") as written:
        out.flush()
        written.seek(begin)
        while size_bytes:
            chunk = written.read(min(CHUNK_BYTES, size_bytes))
            out.write(chunk)
            size_bytes -= len(chunk)
