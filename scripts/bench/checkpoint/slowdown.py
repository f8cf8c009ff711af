"""Case slowdown: how much slower a loop runs while its state is being written, beyond the copy that it waits for.

The loop has one thread and the machine two cores or more, so what is seen is what the saver takes away beside its own
core: the interpreter's lock, memory bandwidth, caches.
"""

import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bench.checkpoint.systems import Weights, join_alone
from bench.rows import Row, row
from checkpoints import CheckpointManager, TrainStatus

SECONDS = 4.0


def measure(size_bytes: int, folder: Path, runs: int) -> list[Row]:
    """Rows: seconds per step while saves run one after another, over those without, for two kinds of loops."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [item for kind in ("compute", "python") for item in _measure(kind, size_bytes, folder, runs)]
    finally:
        torch.set_num_threads(threads)


def _measure(kind: str, size_bytes: int, folder: Path, runs: int) -> list[Row]:
    step = _compute() if kind == "compute" else _python()
    model = Weights(size_bytes)
    found: dict[str, list[float]] = {"edl": [], "dcp-async": []}
    for _ in range(runs):
        for system, loop in (("edl", _saving_edl), ("dcp-async", _saving_dcp)):
            with tempfile.TemporaryDirectory(prefix="edl-bench-", dir=folder) as base:
                alone_s = _seconds_per_step(step, SECONDS / 2)
                found[system].append(loop(step, model, Path(base)) / alone_s)
    return [
        row("slowdown", f"{system}-{kind}" if kind != "compute" else system, "ratio", "1", ratios)
        for system, ratios in found.items()
    ]


def _saving_edl(step: Callable[[], None], model: Weights, folder: Path) -> float:
    with CheckpointManager(str(folder), keep=1) as manager:
        manager.save(TrainStatus(), model=model)
        manager.wait()
        return _while_saving(
            step,
            lambda number: manager.save(TrainStatus(global_step=number), model=model),
            lambda: not manager.in_flight,
        )


def _saving_dcp(step: Callable[[], None], model: Weights, folder: Path) -> float:
    dcp: Any = import_module("torch.distributed.checkpoint")
    join_alone()
    running: list[Any] = []

    def begin(number: int) -> None:
        running[:] = [dcp.async_save({"model": model.state_dict()}, checkpoint_id=folder / str(number % 2))]

    return _while_saving(step, begin, lambda: running[0].done())


def _while_saving(step: Callable[[], None], begin: Callable[[int], object], ended: Callable[[], bool]) -> float:
    """Seconds per step in the times between the return of `begin` and the end of its save."""
    steps, spent_s, number = 0, 0.0, 0
    while spent_s < SECONDS:
        number += 1
        begin(number)
        began_s = time.perf_counter()
        while not ended():
            step()
            steps += 1
        spent_s += time.perf_counter() - began_s
    return spent_s / steps


def _seconds_per_step(step: Callable[[], None], seconds: float) -> float:
    steps, began_s = 0, time.perf_counter()
    while (took_s := time.perf_counter() - began_s) < seconds:
        step()
        steps += 1
    return took_s / steps


def _compute() -> Callable[[], None]:
    """Matrix products that fit into the caches."""
    left, right = torch.randn(256, 256), torch.randn(256, 256)

    def step() -> None:
        for _ in range(10):
            torch.mm(left, right)

    return step


def _python() -> Callable[[], None]:
    """A loop that never lets go of the interpreter's lock by itself."""

    def step() -> None:
        total = 0
        for value in range(50_000):
            total += value

    return step
