"""Batches of tensors in shared slots: written by a collate, taken apart into what travels, put together by the trainer.

A batch is any nest of tuples, lists and mappings. Its CPU tensors lie in the slot; all else (strings, None, tensors
of other devices or layouts) stays in the nest, which the DataLoader carries as always. Predictions are appended to a
tuple or list as further items and to a mapping under their names; the batch of a RecordingDataset keeps its record.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from distill import oip
from distill.errors import ConfigError, ProtocolError
from distill.io_messages import Part
from distill.ring import PAGE_BYTES, aligned
from edl_collective.batches import Recorded

#: those that torch has as well, from its first releases on
_NUMPY_DTYPES = frozenset({"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"})


class SlotFull(Exception):
    """Raised when a batch does not fit into its slot; it travels another way then."""


class InSlot(NamedTuple):
    """Stands in a nest for a tensor that lies in the slot."""

    dtype: torch.dtype
    #: [...]
    shape: tuple[int, ...]
    offset: int
    #: it was a numpy array
    array: bool = False


#: stand alone in a nest; exact types are looked up first, as that is cheaper for every batch
_LEAF_BASES = (Tensor, str, int, float)
_LEAVES = frozenset({InSlot, *_LEAF_BASES, type(None)})


class Samples(NamedTuple):
    """Samples of a generator, of which the arrays for teachers stand together."""

    #: by the names of ins=, [samples, ...]
    columns: dict[str, Any]
    #: place in a sample -> name of the column that has it
    places: dict[int, str]
    #: the samples, with None at those places
    rest: list[tuple[Any, ...]]


class Filling:
    """Fills one slot from its second page on."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.end = PAGE_BYTES
        #: by address
        self._placed: dict[int, InSlot] = {}

    def stack(self, tensors: Sequence[Tensor], *, collate_fn_map: object = None) -> Tensor:  # noqa: ARG002 - torch passes it
        """torch's stack for its default collate, straight into the slot: tensors of [...] become one [batch, ...]."""
        first = tensors[0]
        if not _storable(first):
            return torch.stack(tuple(tensors), 0)
        out = self._new(first.dtype, (len(tensors), *first.shape))
        try:
            return torch.stack(tuple(tensors), 0, out=out)
        except RuntimeError as error:
            shapes = sorted({tuple(tensor.shape) for tensor in tensors})
            raise ConfigError(
                f"the samples of a batch have tensors of the shapes {shapes}: give all one shape, or the DataLoader a "
                f"collate_fn that pads them ({error})"
            ) from error

    def store(self, nest: Any) -> Any:
        """Move a batch's tensors into the slot; returns the nest with InSlot in their places. Raises SlotFull."""
        return map_nest(self._store, nest)

    def _store(self, leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray) and leaf.dtype.name in _NUMPY_DTYPES and leaf.size:
            return self._store(torch.as_tensor(np.ascontiguousarray(leaf)))._replace(array=True)
        if not isinstance(leaf, Tensor) or not _storable(leaf) or leaf.numel() == 0:
            return leaf
        placed = self._placed.get(leaf.data_ptr())
        if placed is not None and (placed.dtype, placed.shape) == (leaf.dtype, tuple(leaf.shape)):
            return placed
        out = self._new(leaf.dtype, tuple(leaf.shape))
        out.copy_(leaf)
        return self._placed[out.data_ptr()]

    def _new(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        place = InSlot(dtype, shape, aligned(self.end))
        end = place.offset + dtype.itemsize * math.prod(shape)
        if end > len(self._memory):
            raise SlotFull
        self.end = end
        out = view(self._memory, place)
        self._placed[out.data_ptr()] = place
        return out


def view(memory: memoryview, place: InSlot) -> Tensor:
    """The tensor that lies there; it keeps `memory` alive."""
    count = math.prod(place.shape)
    if not count:
        return torch.empty(place.shape, dtype=place.dtype)
    return torch.frombuffer(memory, dtype=place.dtype, count=count, offset=place.offset).view(place.shape)


class Tensors(Protocol):
    """The tensors of a slot, by their places."""

    def __getitem__(self, place: InSlot) -> Tensor: ...


class Views:
    """Tensors in memory that is used once."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def __getitem__(self, place: InSlot) -> Tensor:
        return view(self._memory, place)


def restore(tensors: Tensors, nest: Any) -> Any:
    """The nest with tensors where there are InSlots."""
    if type(nest) is list:  # what the default collate makes: straight on, since each batch comes through here
        return [_restored(tensors, leaf) if type(leaf) is InSlot else restore(tensors, leaf) for leaf in nest]
    return map_nest(lambda leaf: _restored(tensors, leaf) if isinstance(leaf, InSlot) else leaf, nest)


def _restored(tensors: Tensors, place: InSlot) -> Any:
    tensor = tensors[place]
    return tensor.numpy() if place.array else tensor


def map_nest(function: Callable[[Any], Any], nest: Any) -> Any:
    """The nest with function(leaf) for each leaf."""
    kind = type(nest)
    if kind in _LEAVES:
        return function(nest)
    if kind is list:
        return [map_nest(function, value) for value in nest]
    if isinstance(nest, _LEAF_BASES):
        return function(nest)
    if isinstance(nest, Mapping):
        return _same_mapping(nest, {key: map_nest(function, value) for key, value in nest.items()})
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(map_nest(function, value) for value in nest))
    if isinstance(nest, tuple | list):
        values = [map_nest(function, value) for value in nest]
        return values if isinstance(nest, list) else tuple(values)
    return function(nest)


def named_items(nest: Any, ins: Sequence[str | None]) -> dict[str, Any]:
    """The items of a batch that `ins` names. Raises ConfigError when the batch has no such item."""
    if isinstance(nest, Recorded):
        nest = nest.item
    if isinstance(nest, Samples):
        nest = nest.columns
    names = [name for name in ins if name is not None]
    if isinstance(nest, Mapping):
        missing = [name for name in names if name not in nest]
        if missing:
            raise ConfigError(f"ins= names {missing}, which the batch has not: its keys are {sorted(map(str, nest))}")
        return {name: nest[name] for name in names}
    items = nest if isinstance(nest, tuple | list) and not isinstance(nest, InSlot) else (nest,)
    if len(ins) > len(items):
        raise ConfigError(f"ins= names {len(ins)} items, {list(ins)}, and the batch has {len(items)}")
    return {name: item for name, item in zip(ins, items, strict=False) if name is not None}


def parts_of(nest: Any, ins: Sequence[str | None]) -> tuple[int, tuple[Part, ...]]:
    """Rows of a batch in a slot, and its tensors that teachers may get. Raises ConfigError."""
    parts = []
    for name, place in named_items(nest, ins).items():
        if not isinstance(place, InSlot) or not place.shape or not all(place.shape):
            raise ConfigError(f"item {name!r} of ins= must be a CPU tensor [batch, ...] with at least one row in it")
        try:
            datatype = oip.datatype_of(str(place.dtype).removeprefix("torch."))
        except ProtocolError as error:
            raise ConfigError(f"item {name!r} of ins=: {error}") from error
        parts.append(Part(name, datatype, place.shape, place.offset))
    rows = {part.name: part.shape[0] for part in parts}
    if len(set(rows.values())) != 1:
        raise ConfigError(f"the items of ins= must have as many rows as each other, not {rows}")
    return parts[0].shape[0], tuple(parts)


def prediction(tensors: Tensors, part: Part, as_float32: bool) -> Tensor:
    """The tensor of a teacher's output [batch, ...]."""
    dtype = _dtype(part.datatype)
    tensor = tensors[InSlot(dtype, part.shape, part.offset)]
    return tensor.float() if as_float32 and dtype is torch.float16 else tensor


@cache
def _dtype(datatype: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, oip.DATATYPES[datatype][1])
    return found


def append(nest: Any, names: Sequence[str], extra: Sequence[Any]) -> Any:
    """The batch with further items, under `names` where it is a mapping."""
    if type(nest) is list:  # before all that is rare
        return [*nest, *extra]
    if isinstance(nest, Recorded):
        return Recorded(nest.sample_index, append(nest.item, names, extra))
    if isinstance(nest, Mapping):
        return _same_mapping(nest, {**nest, **dict(zip(names, extra, strict=True))})
    if isinstance(nest, list):
        return [*nest, *extra]
    return (*nest, *extra) if isinstance(nest, tuple) else (nest, *extra)


def _same_mapping(like: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    if type(like) is dict:
        return values
    try:
        return type(like)(values)  # type: ignore[call-arg]
    except TypeError:  # a mapping that is made otherwise
        return values


def _storable(tensor: Tensor) -> bool:
    # A tensor that requires grad, or of a subclass, carries more than its bytes.
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.requires_grad
        and not tensor.is_quantized
    )
