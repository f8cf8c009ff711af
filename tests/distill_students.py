"""Data whose predictions tell which sample they are for, and teachers that can be made to misbehave."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from distill.teacher_client import TeacherClient

#: bytes of a sample; the first eight are its number
WIDTH = 64


class Numbered(Dataset[tuple[Tensor, int]]):
    """Samples of uint8 [width] whose first eight bytes are their number, and the number as label."""

    def __init__(self, samples: int = 50, fail_at: int | None = None, width: int = WIDTH) -> None:
        self._samples, self._fail_at, self._width = samples, fail_at, width

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self._fail_at:
            raise LookupError(f"sample {index} is not to be had")
        return numbered(index, self._width), index


def numbered(number: int, width: int = WIDTH) -> Tensor:
    """The pixels of a sample."""
    pixels = torch.full((width,), number % 251, dtype=torch.uint8)
    pixels[:8] = torch.tensor([number]).view(torch.uint8)
    return pixels


def check(pixels: Tensor, labels: Tensor, predictions: Tensor) -> list[int]:
    """That all three are of the same samples, each of its row; returns their numbers."""
    numbers: list[int] = labels.tolist()
    assert torch.equal(pixels, torch.stack([numbered(number, pixels.shape[1]) for number in numbers]))
    assert predictions[:, 0].tolist() == numbers
    assert predictions[:, 1].tolist() == [number + 0.5 for number in numbers]
    assert predictions[:, 2].tolist() == [number % 251 for number in numbers]
    return numbers


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class FaultTeacher:
    """A process of tests/fault_teacher.py."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.name = f"127.0.0.1:{self.port}"
        script = Path(__file__).with_name("fault_teacher.py")
        self.process = subprocess.Popen([sys.executable, str(script), str(self.port), *options])
        self._options = options

    def await_live(self) -> None:
        client = TeacherClient(f"http://{self.name}", timeout_s=5.0)
        deadline_s = time.monotonic() + 60.0
        while not client.live():
            assert time.monotonic() < deadline_s
            assert self.process.poll() is None
            time.sleep(0.01)
        client.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def again(self) -> "FaultTeacher":
        """The same teacher, started once more at its address."""
        return FaultTeacher(*self._options, port=self.port)


@contextmanager
def teachers(*options: tuple[str, ...]) -> Iterator[list[FaultTeacher]]:
    """One teacher for each tuple of options; whoever is in the list at the end is ended."""
    running = [FaultTeacher(*o) for o in options]
    try:
        for teacher in running:
            teacher.await_live()
        yield running
    finally:
        for teacher in running:
            teacher.kill()


def named(running: list[FaultTeacher]) -> str:
    return ",".join(teacher.name for teacher in running)


def reader_options(**options: Any) -> dict[str, Any]:
    """What all readers of these tests are made with."""
    return {"ins": ["x"], "predicts": ["y"], **options}
