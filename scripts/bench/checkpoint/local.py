"""The cases on a local disk: blocked, durable-local, load. All systems take turns, and another begins each time."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import torch

from bench.checkpoint.systems import Raw, System, Weights, make
from bench.rows import Row, row

#: of the systems that keep their buffers, whose first save is not like the others
WARM_UPS = 1

T = TypeVar("T")


def saves(model: Weights, folder: Path, runs: int, systems: Sequence[str]) -> list[Row]:
    """Rows of blocked, with the ratio to a copy made just before, and durable-local, to the raw write of the turn."""
    with tempfile.TemporaryDirectory(prefix="edl-bench-", dir=folder) as base:
        reference = Raw(model, Path(base))
        measured = _in_turns(model, folder, runs, systems, lambda system: (reference.copy(), system.save()))
    raw = [times.durable_s for _, times in measured["raw"]]
    rows = []
    for name in systems:
        copies, times = zip(*measured[name], strict=True)
        rows += figures("blocked", name, [item.blocked_s for item in times], copies, model.size_bytes)
        rows += figures("durable-local", name, [item.durable_s for item in times], raw, model.size_bytes)
    return rows


def loads(model: Weights, folder: Path, runs: int, systems: Sequence[str]) -> list[Row]:
    """Rows of load: from the page cache, into a model that is there; ours alone verifies what it reads."""
    names = [name for name in systems if name != "dcp-async"]

    def prepare(system: System) -> None:
        system.save()

    measured = _in_turns(model, folder, runs, names, lambda system: system.load(), prepare)
    return [item for name in names for item in figures("load", name, measured[name], measured["raw"], model.size_bytes)]


def figures(case: str, system: str, seconds: Sequence[float], reference: Sequence[float], size_bytes: int) -> list[Row]:
    """Seconds, the ratio to the reference of the same turn, and MB a second."""
    return [
        row(case, system, "seconds", "s", seconds),
        row(case, system, "ratio", "1", [a / b for a, b in zip(seconds, reference, strict=True)]),
        row(case, system, "mb_s", "MB/s", [size_bytes / 1e6 / value for value in seconds]),
    ]


def _in_turns(
    model: Weights,
    folder: Path,
    runs: int,
    names: Sequence[str],
    measure: Callable[[System], T],
    prepare: Callable[[System], None] = lambda _: None,
) -> dict[str, list[T]]:
    found: dict[str, list[T]] = {name: [] for name in names}
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edl-bench-", dir=folder)))
        systems = {name: make(name, model, base / name) for name in names}
        for system in systems.values():
            stack.callback(system.close)
            prepare(system)
        for run in range(runs + WARM_UPS):
            for at in range(len(names)):
                name = names[(at + run) % len(names)]
                with torch.no_grad():
                    value = measure(systems[name])
                if run >= WARM_UPS:
                    found[name].append(value)
    return found
