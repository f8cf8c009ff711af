"""When each worker completed each step: a line per step in <worker>.times, in the machine's monotonic time.

Written by the job, read by whoever measures it; both formats stand here.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """One worker has completed a step."""

    at_s: float
    generation: int
    #: steps completed in the job's life, this one included
    number: int
    worker: str


class StepTimes:
    """Appends the steps of one worker, each with a single write."""

    def __init__(self, record_dir: Path, worker: str) -> None:
        self._descriptor = os.open(record_dir / f"{worker}.times", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def completed(self, generation: int, number: int) -> None:
        os.write(self._descriptor, b"%.6f %d %d\n" % (time.monotonic(), generation, number))


def read_steps(record_dir: Path) -> list[Step]:
    """All completed steps of all workers, in order of time."""
    return sorted(step for path in record_dir.glob("*.times") for step in _read(path))


def _read(path: Path) -> list[Step]:
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was torn by SIGKILL
    fields = [line.split() for line in lines]
    return [Step(float(at), int(generation), int(number), path.stem) for at, generation, number in fields]
