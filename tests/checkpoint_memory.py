"""A checkpoint folder in a dict, for tests that need thousands of them, or a write that waits until it is let go."""

from __future__ import annotations

import threading
from typing import Any

import torch

from checkpoints import CheckpointManager, TrainStatus
from checkpoints.drivers.base import Entry
from checkpoints.errors import CheckpointExists, CheckpointNotFound

GENEROUS_S = 60.0


class MemoryDriver:
    """See Driver. `gate` holds every new file until it is set; `entered` tells that a writer waits there."""

    url = "dict"

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.folders = {path.rpartition("/")[0] for path in self.files} | {""}
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.reads: list[str] = []

    def list_dir(self, path: str) -> list[Entry]:
        if path not in self.folders:
            raise CheckpointNotFound(path)
        names = {}
        for known in (*self.folders, *self.files):
            parent, _, name = known.rpartition("/")
            if parent == path and name:
                names[name] = Entry(name, known in self.folders, len(self.files.get(known, b"")))
        return list(names.values())

    def info(self, path: str) -> Entry:
        if path not in self.files and path not in self.folders:
            raise CheckpointNotFound(path)
        return Entry(path.rpartition("/")[2], path in self.folders, len(self.files.get(path, b"")))

    def open_read(self, path: str) -> MemoryReader:
        self.reads.append(path)
        if path not in self.files:
            raise CheckpointNotFound(path)
        return MemoryReader(self.files[path])

    def open_write(self, path: str) -> MemoryWriter:
        self.entered.set()
        assert self.gate.wait(GENEROUS_S)
        if path in self.files:
            raise CheckpointExists(path)
        return MemoryWriter(self, path)

    def write_once(self, path: str, data: bytes) -> None:
        if path in self.files:
            raise CheckpointExists(path)
        if path.rpartition("/")[0] not in self.folders:
            raise CheckpointNotFound(path)
        self.files[path] = data

    def make_dirs(self, path: str) -> None:
        self.folders.add(path)

    def remove(self, path: str) -> None:
        self.files.pop(path, None)

    def remove_tree(self, path: str) -> None:
        self.folders.discard(path)
        self.files = {name: data for name, data in self.files.items() if not name.startswith(f"{path}/")}

    def close(self) -> None:
        pass


class MemoryReader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def readinto(self, buffer: memoryview) -> int:
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def close(self) -> None:
        pass


class MemoryWriter:
    def __init__(self, driver: MemoryDriver, path: str) -> None:
        self._driver = driver
        self._path = path
        self._data = bytearray()

    def write(self, data: memoryview) -> None:
        self._data += data

    def commit(self) -> None:
        self._driver.files[self._path] = bytes(self._data)

    def abort(self) -> None:
        pass


class Counter:
    """Something stateful."""

    def __init__(self, value: int = 0) -> None:
        self.weight = torch.full((50,), value)

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]

    @property
    def value(self) -> int:
        (value,) = set(self.weight.tolist())
        return int(value)


def at(step: int, epoch: int = -1) -> TrainStatus:
    return TrainStatus(epoch_no=epoch, global_step=step)


def manager(driver: Any, **options: Any) -> CheckpointManager:
    return CheckpointManager("folder", driver=driver, **options)


def newest(driver: Any) -> tuple[int, int]:
    """Step and value of the newest checkpoint."""
    counter = Counter(-1)
    status = manager(driver).load(counter=counter)
    assert status is not None
    return status.global_step, counter.value
