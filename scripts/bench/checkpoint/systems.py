"""The ways to save and load a state on a disk, each with the same ruler: until the trainer may go on, and until it is
durable (fsync of file and folder, or what the system does for that).
"""

import abc
import itertools
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from checkpoints import CheckpointManager, TrainStatus

CHUNK_BYTES = 4 << 20
#: of one parameter; a model of this size has a few hundred MB in a few dozen tensors
PARAMETER_BYTES = 16 << 20


class Times(NamedTuple):
    """Seconds of one save."""

    blocked_s: float
    durable_s: float


class System(Protocol):
    """Saves and loads one state in a folder of its own; a new save may replace the one before."""

    def save(self) -> Times: ...

    def load(self) -> float:
        """Seconds until the model has what was saved."""

    def close(self) -> None: ...


class Weights(torch.nn.Module):
    """A state of so many bytes."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        count = max(1, size_bytes // PARAMETER_BYTES)
        shape = (size_bytes // count // 4,)
        self.weights = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(shape)) for _ in range(count)])

    @property
    def size_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.parameters())


def make(name: str, model: Weights, folder: Path) -> System:
    """A system by its name in the table."""
    folder.mkdir(parents=True, exist_ok=True)
    return SYSTEMS[name](model, folder)


class Edl:
    """CheckpointManager as it comes, or with async_save=False."""

    def __init__(self, model: Weights, folder: Path, *, async_save: bool = True) -> None:
        self._model = model
        self._manager = CheckpointManager(str(folder), keep=1, async_save=async_save)
        self._steps = itertools.count(1)
        self._manager.reserve(model=model)
        self._manager.wait()

    def save(self) -> Times:
        began_s = time.perf_counter()
        self._manager.save(TrainStatus(global_step=next(self._steps)), model=self._model)
        blocked_s = time.perf_counter() - began_s
        self._manager.wait()
        return Times(blocked_s, time.perf_counter() - began_s)

    def load(self) -> float:
        began_s = time.perf_counter()
        assert self._manager.load(model=self._model) is not None
        return time.perf_counter() - began_s

    def close(self) -> None:
        self._manager.close()


class OneFile(abc.ABC):
    """A system that writes one file, which is flushed to the disk afterwards, and removed before the next save."""

    def __init__(self, model: Weights, folder: Path) -> None:
        self.model = model
        self.path = folder / "file"

    @abc.abstractmethod
    def write(self) -> None:
        """The state into the file."""

    @abc.abstractmethod
    def read(self) -> None:
        """The file into the model."""

    def save(self) -> Times:
        self.path.unlink(missing_ok=True)
        began_s = time.perf_counter()
        self.write()
        for path in (self.path, self.path.parent):
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        took_s = time.perf_counter() - began_s
        return Times(took_s, took_s)

    def load(self) -> float:
        began_s = time.perf_counter()
        self.read()
        return time.perf_counter() - began_s

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


class Raw(OneFile):
    """The reference: one copy of the state in memory, and its bytes written, or read and copied, as they are.

    Its buffers are there before, as those of no other system but ours are.
    """

    def __init__(self, model: Weights, folder: Path) -> None:
        super().__init__(model, folder)
        self._buffer = torch.zeros(model.size_bytes, dtype=torch.uint8)
        self._memory = memoryview(self._buffer.numpy())  # type: ignore[arg-type]  # numpy's stub lacks the protocol
        sizes = [value.numel() * value.element_size() for value in model.parameters()]
        parts = zip(torch.split(self._buffer, sizes), model.parameters(), strict=True)
        self._pairs = [(part.view(value.dtype), value.detach()) for part, value in parts]

    def copy(self) -> float:
        """Seconds of one copy of the state into memory that is there."""
        began_s = time.perf_counter()
        with torch.no_grad():
            for part, value in self._pairs:
                part.copy_(value)
        return time.perf_counter() - began_s

    def save(self) -> Times:
        return Times(self.copy(), super().save().durable_s)

    def write(self) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for begin in range(0, len(self._memory), CHUNK_BYTES):
            chunk = self._memory[begin : begin + CHUNK_BYTES]
            while chunk:
                chunk = chunk[os.write(fd, chunk) :]
        os.close(fd)

    def read(self) -> None:
        with self.path.open("rb", buffering=0) as file:
            begin = 0
            while count := file.readinto(self._memory[begin : begin + CHUNK_BYTES]):
                begin += count
        for part, value in self._pairs:
            value.copy_(part)


class TorchSave(OneFile):
    """torch.save of the state dict, torch.load with weights_only."""

    def write(self) -> None:
        torch.save(self.model.state_dict(), self.path)

    def read(self) -> None:
        self.model.load_state_dict(torch.load(self.path, weights_only=True))


class Safetensors(OneFile):
    """safetensors.torch."""

    def write(self) -> None:
        from safetensors.torch import save_file

        save_file(self.model.state_dict(), self.path)

    def read(self) -> None:
        from safetensors.torch import load_file

        self.model.load_state_dict(load_file(self.path))


class Dcp:
    """torch.distributed.checkpoint of one process, whose writer syncs its files."""

    def __init__(self, model: Weights, folder: Path, *, asynchronous: bool = False) -> None:
        self._model = model
        self._folder = folder / "dcp"
        self._asynchronous = asynchronous
        if asynchronous:
            join_alone()

    def save(self) -> Times:
        dcp: Any = import_module("torch.distributed.checkpoint")
        shutil.rmtree(self._folder, ignore_errors=True)
        state = {"model": self._model.state_dict()}
        began_s = time.perf_counter()
        if self._asynchronous:
            future: Any = dcp.async_save(state, checkpoint_id=self._folder)
            blocked_s = time.perf_counter() - began_s
            future.result()
            return Times(blocked_s, time.perf_counter() - began_s)
        with _one_process():
            dcp.save(state, checkpoint_id=self._folder)
        took_s = time.perf_counter() - began_s
        return Times(took_s, took_s)

    def load(self) -> float:
        dcp: Any = import_module("torch.distributed.checkpoint")
        began_s = time.perf_counter()
        state = {"model": self._model.state_dict()}
        with _one_process():
            dcp.load(state, checkpoint_id=self._folder)
        self._model.load_state_dict(state["model"])
        return time.perf_counter() - began_s

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def join_alone() -> None:
    """A process group of one, which dcp's asynchronous save needs."""
    distributed: Any = torch.distributed
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)


@contextmanager
def _one_process() -> Iterator[None]:
    """dcp warns that it takes one process for all there is, which is right."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _edl_sync(model: Weights, folder: Path) -> System:
    return Edl(model, folder, async_save=False)


def _dcp_async(model: Weights, folder: Path) -> System:
    return Dcp(model, folder, asynchronous=True)


SYSTEMS: dict[str, Callable[[Weights, Path], System]] = {
    "edl": Edl,
    "edl-sync": _edl_sync,
    "raw": Raw,
    "torch.save": TorchSave,
    "safetensors": Safetensors,
    "dcp": Dcp,
    "dcp-async": _dcp_async,
}
