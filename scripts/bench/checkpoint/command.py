"""scripts/bench.sh checkpoint: what saving and loading a state costs, beside PyTorch's own ways."""

import argparse
import tempfile
from collections.abc import Collection
from pathlib import Path

from bench.command import QUICK_RUNS, Bound, Command, Measurement, Report, measured, single
from bench.errors import BadOption
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

LOCAL = ("edl", "edl-sync", "raw", "torch.save", "safetensors", "dcp", "dcp-async")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mib", type=int, default=1024, help="size of the state (default: 1024)")
    folder = Path(tempfile.gettempdir())
    parser.add_argument("--folder", type=Path, default=folder, help=f"on the disk to be measured (default: {folder})")


def run(options: argparse.Namespace, report: Report) -> list[Row]:
    if options.mib < 1 or not options.folder.is_dir():
        raise BadOption(f"--mib {options.mib} must be at least 1 and --folder {options.folder} a folder")
    size_bytes = options.mib << 20
    report["config"] = {"state_bytes": size_bytes, "folder": str(options.folder), "runs": options.runs}
    return measured(measurements(size_bytes, options.folder, options.cases), options.cases, options.runs)


def measurements(size_bytes: int, folder: Path, names: Collection[str] | None = None) -> list[Measurement]:
    """In the order in which they run; on HDFS, only the cases `names`. Imported late: they load torch."""
    from bench.checkpoint import hdfs, local, memory, slowdown
    from bench.checkpoint.systems import Weights

    def of_memory(runs: int) -> list[Row]:
        """Its runs differ by less than 1 %, and start a process for each system."""
        return memory.measure(size_bytes, folder, 1 if runs <= QUICK_RUNS else runs)

    def on_hdfs(runs: int) -> list[Row]:
        wanted = [name for name in ("durable-hdfs", "latest-1000") if names is None or name in names]
        return hdfs.measure(Weights(size_bytes), folder, runs, wanted)

    return [
        Measurement(
            lambda runs: local.saves(Weights(size_bytes), folder, runs, LOCAL),
            {"blocked": Bound("ratio", 1.15), "durable-local": Bound("ratio", 1.10)},
        ),
        single("load", lambda runs: local.loads(Weights(size_bytes), folder, runs, LOCAL), "ratio", 1.3),
        single("memory", of_memory, "ratio", 1.05),
        single("slowdown", lambda runs: slowdown.measure(size_bytes, folder, runs), "ratio", 1.05),
        Measurement(on_hdfs, {"durable-hdfs": Bound("ratio", 1.10), "latest-1000": Bound("seconds", 0.3)}),
    ]


COMMAND = Command(
    name="checkpoint",
    help="saving and loading, beside PyTorch's own ways",
    description=DESCRIPTION,
    quick="under 10 minutes: 3 runs of each case",
    run=run,
    add_arguments=add_arguments,
)
