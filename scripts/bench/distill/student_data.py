"""What the students of the benches read, and how their processes are timed."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from teachers import TeacherProcess
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.reader import DistillReader

ROWS, SIZE = 32, 224
INPUT = f"image:uint8:3,{SIZE},{SIZE}"
_POOL = 256


class Images(Dataset[tuple[Tensor, int]]):
    """uint8 [3, size, size] out of a pool, whose first four pixels are the sample's number, and the number."""

    def __init__(self, samples: int, size: int = SIZE) -> None:
        self._samples = samples
        generator = torch.Generator().manual_seed(0)
        self._pool = torch.randint(0, 256, (_POOL, 3, size, size), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self._pool[index % _POOL]
        image.view(-1)[:4] = torch.tensor([index], dtype=torch.int32).view(torch.uint8)
        return image, index


def images(batches: int, size: int = SIZE, **options: Any) -> "DataLoader[Any]":
    """A loader of so many batches of 32 images."""
    settings: dict[str, Any] = {"num_workers": 1, "prefetch_factor": 4, **options}
    return DataLoader(Images(batches * ROWS, size), batch_size=ROWS, **settings)


def reader_of(loader: Any, running: Sequence[TeacherProcess], **options: Any) -> DistillReader:
    """A reader of image and label."""
    urls = ",".join(teacher.url for teacher in running)
    return DistillReader(loader, ins=["image"], predicts=["output"], teachers=urls or None, **options)


def steps(batches: Iterator[Any], count: int, step_s: float) -> list[float]:
    """Read batches and wait for `step_s` after each, as for a GPU; the monotonic times at which they were there."""
    times = []
    for _ in range(count):
        next(batches)
        times.append(time.monotonic())
        time.sleep(step_s)
    return times


def compute(seconds: float) -> None:
    """Keep this core busy: a core that slept is slow at first, and a trainer's does not sleep."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


def process_cpu_s(pid: int) -> float:
    """CPU seconds of another process so far, to the nanosecond: Linux's clock of a process."""
    return time.clock_gettime((~pid << 3) | 2)


def io_pid(reader: DistillReader) -> int:
    """The process that asks the teachers for this reader."""
    assert reader._session is not None
    assert reader._session.link is not None
    return reader._session.link.pid
