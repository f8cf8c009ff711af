"""The collectives that a state needs to become the same on every rank, without pickle: numbers, JSON and tensors.

Every function is called by all ranks in the same order. Any of them raises HorovodInternalError when a member dies.
Tensors travel as bytes, so every dtype does, bfloat16 and bool included.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import horovod.torch as hvd
import msgspec
import torch

from checkpoints.tree import flatten, unflatten
from edl_collective.waiting import wait

JSON = Any

#: up to which a JSON text, and a tensor, travels together with others
_SHORT_JSON_BYTES = 16 * 1024
_SMALL_TENSOR_BYTES = 64 * 1024
_LENGTH_BYTES = 8


def sum_across(values: Sequence[float]) -> list[float]:
    """The sum of each of `values` over all ranks; every rank gives as many."""
    total = wait(hvd.allreduce_async(torch.tensor(values, dtype=torch.float64), op=hvd.Sum, name="edl.sum"))
    return [float(value) for value in total]


def gather_rows(row: Sequence[int]) -> list[list[int]]:
    """The row of each rank, in rank order."""
    rows = wait(hvd.allgather_async(torch.tensor([list(row)], dtype=torch.int64), name="edl.rows"))
    return [[int(value) for value in values] for values in rows]


def broadcast_json(value: JSON, source: int) -> JSON:
    """What `value` is on rank `source`; the others' is ignored."""
    sending = hvd.rank() == source
    data = msgspec.json.encode(value) if sending else b""
    # Most values are short: they travel with their length, and one collective costs as much as a turn of Horovod's.
    first = bytearray(_LENGTH_BYTES + _SHORT_JSON_BYTES)
    first[:_LENGTH_BYTES] = len(data).to_bytes(_LENGTH_BYTES, "little")
    first[_LENGTH_BYTES : _LENGTH_BYTES + len(data)] = data[:_SHORT_JSON_BYTES]
    first = _broadcast_bytes(first[: _LENGTH_BYTES + _SHORT_JSON_BYTES], source, "edl.json")
    length = int.from_bytes(first[:_LENGTH_BYTES], "little")
    head = first[_LENGTH_BYTES : _LENGTH_BYTES + length]
    if length > _SHORT_JSON_BYTES:
        rest = bytearray(data[_SHORT_JSON_BYTES:]) if sending else bytearray(length - _SHORT_JSON_BYTES)
        head += _broadcast_bytes(rest, source, "edl.json.rest")
    return value if sending else msgspec.json.decode(head)


def broadcast_tensors(tensors: Sequence[torch.Tensor], source: int) -> None:
    """Overwrite `tensors`, equal in number, shape and dtype on every rank, by those of rank `source`.

    The small ones of a device travel together: Horovod would send each on its own.
    """
    small: dict[torch.device, list[torch.Tensor]] = {}
    pending = []
    for number, tensor in enumerate(tensors):
        if tensor.numel() == 0:
            continue
        if tensor.numel() * tensor.element_size() <= _SMALL_TENSOR_BYTES:
            small.setdefault(tensor.device, []).append(tensor)
            continue
        flat = _as_bytes(tensor)
        pending.append(([tensor], flat, hvd.broadcast_async_(flat, source, name=f"edl.tensor.{number}")))
    for number, together in enumerate(small.values()):
        flat = torch.cat([_as_bytes(tensor) for tensor in together])
        pending.append((together, flat, hvd.broadcast_async_(flat, source, name=f"edl.tensors.{number}")))
    for received, flat, handle in pending:
        wait(handle)
        parts = torch.split(flat, [tensor.numel() * tensor.element_size() for tensor in received])
        for tensor, part in zip(received, parts, strict=True):
            if hvd.rank() != source and part.data_ptr() != tensor.data_ptr():
                aligned = part.clone() if part.storage_offset() % tensor.element_size() else part
                tensor.detach().copy_(aligned.view(tensor.dtype).view(tensor.shape))


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _broadcast_bytes(data: bytearray, source: int, name: str) -> bytearray:
    sent = wait(hvd.broadcast_async(torch.frombuffer(data, dtype=torch.uint8), source, name=name))
    return bytearray(sent.numpy())


def broadcast_state(state: Mapping[str, Any] | None, source: int, local: Mapping[str, torch.Tensor]) -> Any:
    """The nested state of rank `source` (as state_dict() gives it), on every rank.

    Arguments: state, on rank `source`, ignored elsewhere; local, tensors by their name in the state, such as
    "model.conv.weight", that this rank holds already: they are overwritten in place and nothing is allocated for them.
    """
    tree, tensors = flatten(state) if hvd.rank() == source else (None, {})
    tree, specs = broadcast_json([tree, [_spec(name, tensor) for name, tensor in tensors.items()]], source)
    if hvd.rank() != source:
        tensors = {name: _receiver(spec, local.get(name)) for name, *spec in specs}
    broadcast_tensors(list(tensors.values()), source)
    return unflatten(tree, tensors.__getitem__)


def _spec(name: str, tensor: torch.Tensor) -> list[Any]:
    return [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), tensor.device.type]


def _receiver(spec: Sequence[Any], mine: torch.Tensor | None) -> torch.Tensor:
    dtype, shape, device = getattr(torch, spec[0]), tuple(spec[1]), spec[2]
    if mine is not None and mine.dtype == dtype and tuple(mine.shape) == shape and mine.device.type == device:
        return mine
    return torch.empty(shape, dtype=dtype, device=device)
