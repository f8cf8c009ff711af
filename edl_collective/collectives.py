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

JSON = Any


def sum_across(values: Sequence[float]) -> list[float]:
    """The sum of each of `values` over all ranks; every rank gives as many."""
    total = hvd.allreduce(torch.tensor(values, dtype=torch.float64), op=hvd.Sum, name="edl.sum")
    return [float(value) for value in total]


def gather_rows(row: Sequence[int]) -> list[list[int]]:
    """The row of each rank, in rank order."""
    rows = hvd.allgather(torch.tensor([list(row)], dtype=torch.int64), name="edl.rows")
    return [[int(value) for value in values] for values in rows]


def broadcast_json(value: JSON, source: int) -> JSON:
    """What `value` is on rank `source`; the others' is ignored."""
    sending = hvd.rank() == source
    data = bytearray(msgspec.json.encode(value) if sending else b"")
    length = hvd.broadcast(torch.tensor([len(data)], dtype=torch.int64), source, name="edl.json.length")
    if not sending:
        data = bytearray(int(length))
    payload = hvd.broadcast(torch.frombuffer(data, dtype=torch.uint8), source, name="edl.json")
    return value if sending else msgspec.json.decode(payload.numpy().tobytes())


def broadcast_tensors(tensors: Sequence[torch.Tensor], source: int) -> None:
    """Overwrite `tensors`, equal in number, shape and dtype on every rank, by those of rank `source`."""
    pending = []
    for number, tensor in enumerate(tensors):
        if tensor.numel() == 0:
            continue
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        pending.append((tensor, flat, hvd.broadcast_async_(flat, source, name=f"edl.tensor.{number}")))
    for tensor, flat, handle in pending:
        hvd.synchronize(handle)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(flat.view(tensor.dtype).view(tensor.shape))


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
