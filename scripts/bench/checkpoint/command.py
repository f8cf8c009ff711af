"""scripts/bench.sh checkpoint: what saving and loading a state costs, beside PyTorch's own ways."""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.distill.command import Case, lines
from bench.rows import Row

DESCRIPTION = """\
Saves and loads a state of 1 GiB in every way, each in turn, and compares with the least that it can take:
  blocked        how long the training waits; ratio to one copy of the state into memory that is there
  durable-local  until it is durable on a local disk, checksummed by ours alone; ratio to write and fsync of its bytes
  load           from the page cache into a model that is there, verified by ours alone; ratio to read and copy
  memory         how much the peak of the process rises by a save; ratio to the state
  slowdown       seconds per step of a loop while a save is written, over those without (one loop computes, one is
                 Python alone)
  durable-hdfs   until it is durable on HDFS, 2 DataNodes; ratio to the raw stream of the same client
  latest-1000    latest() among 1,000 checkpoints on HDFS
"""

QUICK_RUNS = 3
LOCAL = ("edl", "edl-sync", "raw", "torch.save", "safetensors", "dcp", "dcp-async")
BOUNDS = {
    "blocked": Case(lambda _: [], "ratio", 1.15),
    "durable-local": Case(lambda _: [], "ratio", 1.10),
    "load": Case(lambda _: [], "ratio", 1.3),
    "memory": Case(lambda _: [], "ratio", 1.05),
    "slowdown": Case(lambda _: [], "ratio", 1.05),
    "durable-hdfs": Case(lambda _: [], "ratio", 1.10),
    "latest-1000": Case(lambda _: [], "seconds", 0.3),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--quick", action="store_true", help="under 10 minutes: 3 runs of each case")
    parser.add_argument("--runs", type=int, help="runs of each case (default: 5, with --quick 3)")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="default: all")
    parser.add_argument("--mib", type=int, default=1024, help="size of the state (default: 1024)")
    folder = Path(tempfile.gettempdir())
    parser.add_argument("--folder", type=Path, default=folder, help=f"on the disk to be measured (default: {folder})")


def run(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Measure, print and write. Raises ValueError for a case that is not known."""
    names = options.cases or list(BOUNDS)
    unknown = [name for name in names if name not in BOUNDS]
    if unknown:
        raise ValueError(f"there is no case {unknown[0]!r}: use {', '.join(BOUNDS)}")
    if options.mib < 1 or not options.folder.is_dir():
        raise ValueError(f"--mib {options.mib} must be at least 1 and --folder {options.folder} a folder")
    runs = options.runs or (QUICK_RUNS if options.quick else 5)
    rows: list[Row] = []
    for group in _groups(names):
        began_s = time.monotonic()
        print(f"{' '.join(group)}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        found = [item for item in _measure(group, options.mib << 20, options.folder, runs) if item["case"] in names]
        rows += found
        for name in group:
            told = [item for item in found if item["case"] == name]
            print("\n".join(lines(told, BOUNDS[name])), flush=True)
        print(f"    {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    report["load"].append(os.getloadavg())
    report["config"] = {"state_bytes": options.mib << 20, "folder": str(options.folder), "runs": runs}
    if options.json is not None:
        options.json.write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n")


def _groups(names: list[str]) -> list[list[str]]:
    """Cases that one measurement answers stand together."""
    together = [["blocked", "durable-local"], ["load"], ["memory"], ["slowdown"], ["durable-hdfs", "latest-1000"]]
    return [wanted for group in together if (wanted := [name for name in group if name in names])]


def _measure(group: list[str], size_bytes: int, folder: Path, runs: int) -> list[Row]:
    from bench.checkpoint import hdfs, local, memory, slowdown
    from bench.checkpoint.systems import Weights

    if group == ["memory"]:  # its runs differ by less than 1 %, and start a process for each system
        return memory.measure(size_bytes, folder, 1 if runs <= QUICK_RUNS else runs)
    if group == ["slowdown"]:
        return slowdown.measure(size_bytes, folder, runs)
    model = Weights(size_bytes)
    if group == ["load"]:
        return local.loads(model, folder, runs, LOCAL)
    if group[0] in ("durable-hdfs", "latest-1000"):
        return hdfs.measure(model, folder, runs, group)
    return local.saves(model, folder, runs, LOCAL)
