"""A copy of the state in host memory that is taken once and used for every save.

Invariants: `copy` is the only thing that the training waits for, and it does no input or output; the memory is the size
of the state, in one buffer, which grows only when the state does; what is being written is never copied over, which is
for the caller to see to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints.host_memory import HostBuffer
from checkpoints.layout import ShardName
from checkpoints.shard_format import PAGE_BYTES, FlatState, Row, take_apart
from checkpoints.shard_writer import STREAM_BYTES, Source, Staged, Streamed


def states_of(stateful: Mapping[str, Any]) -> dict[ShardName, FlatState]:
    """By shard, each object's state taken apart; the tensors are live.

    Raises:
        StateNotSupported: if a state holds something that cannot be stored.
        ValueError: if a name is not fit for a file.
    """
    return {ShardName(name): take_apart(state_of(value), name) for name, value in stateful.items()}


def state_of(value: Any) -> Any:
    """What `state_dict()` gives; other values are their own state."""
    method = getattr(value, "state_dict", None)
    return method() if callable(method) else value


def streamed(states: Mapping[ShardName, FlatState]) -> dict[ShardName, Source]:
    """Sources that read the live state while it is written; for who waits until it is."""
    largest = max((state.data_bytes for state in states.values()), default=0)
    buffer = HostBuffer(max(1, min(STREAM_BYTES, largest)), forked=False)
    return {name: Streamed(state, buffer) for name, state in states.items()}


@dataclass(frozen=True)
class _Layout:
    """Where each shard's data begins, and the rows it is for."""

    rows: dict[ShardName, tuple[Row, ...]]
    begins: dict[ShardName, int]
    size_bytes: int


class Staging:
    """The host buffer of one saver and the state's places in it."""

    def __init__(self) -> None:
        self._buffer: HostBuffer | None = None
        self._layout = _Layout({}, {}, 0)
        self._places: dict[ShardName, list[Any]] = {}

    @property
    def memory_bytes(self) -> int:
        """Bytes of the buffer, 0 before the first copy."""
        return 0 if self._buffer is None else self._buffer.size_bytes

    def reserve(self, states: Mapping[ShardName, FlatState]) -> None:
        """Take the memory for states like these now, so that no copy has to wait for it."""
        if self._arrange(states) and self._buffer is not None:
            self._buffer.touch()

    def copy(self, states: Mapping[ShardName, FlatState]) -> dict[ShardName, Source]:
        """Copy the live tensors; on return they may change."""
        self._arrange(states)
        queued = set()
        for name, state in states.items():
            for tensor, place in zip(state.tensors, self._places[name], strict=True):
                if place is not None:
                    # Queued on the device's current stream, after the work that made the tensor, and waited for below.
                    on_cuda = tensor.device.type == "cuda"
                    place.copy_(tensor.detach(), non_blocking=on_cuda)
                    if on_cuda:
                        queued.add(tensor.device)
        _synchronize(queued)
        buffer = self._buffer
        assert buffer is not None
        return {name: Staged(state, buffer, self._layout.begins[name]) for name, state in states.items()}

    def _arrange(self, states: Mapping[ShardName, FlatState]) -> bool:
        """Fit buffer and places to the states; returns whether new memory was taken."""
        rows = {name: state.rows for name, state in states.items()}
        if rows == self._layout.rows and self._buffer is not None:
            return False
        begins, end = {}, 0
        for name, state in states.items():
            begins[name] = end
            end += -(-state.data_bytes // PAGE_BYTES) * PAGE_BYTES
        grown = self._buffer is None or self._buffer.size_bytes < end
        if grown:
            self._places = {}
            self._buffer = None  # before the new one is taken: never both
            self._buffer = HostBuffer(
                max(end, PAGE_BYTES),
                pinned_for=_cuda_device(states),
                forked=False,
                way_out=": async_save=False makes no copy",
            )
        buffer = self._buffer
        assert buffer is not None
        self._layout = _Layout(rows, begins, end)
        self._places = {
            name: [buffer.tensor(row, begins[name]) if row.size_bytes else None for row in state.rows]
            for name, state in states.items()
        }
        return grown


def _cuda_device(states: Mapping[ShardName, FlatState]) -> Any:
    """The first CUDA device that something lies on, None if nothing does."""
    devices = (tensor.device for state in states.values() for tensor in state.tensors)
    return next((device for device in devices if device.type == "cuda"), None)


def _synchronize(devices: set[Any]) -> None:
    """Wait for the copies that were queued on CUDA devices."""
    for device in devices:
        import torch

        torch.cuda.current_stream(device).synchronize()
