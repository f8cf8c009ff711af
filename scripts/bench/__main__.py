"""The command line of scripts/bench.sh."""

import argparse
import importlib.metadata
import os
import signal
import sys
import time
from collections.abc import Sequence

from bench import resize_command
from bench.checkpoint import command as checkpoint_command
from bench.command import QUICK_RUNS, RUNS, Report
from bench.control import command as control_command
from bench.distill import command as distill_command
from bench.errors import BadOption
from bench.resize import machine

COMMANDS = (resize_command.COMMAND, distill_command.COMMAND, checkpoint_command.COMMAND, control_command.COMMAND)
PACKAGES = (
    "edl-elastic", "horovod", "torch", "torchft-nightly", "tritonclient", "grpcio", "kazoo", "safetensors",
    "hdfs-native",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench.sh")
    commands = parser.add_subparsers(dest="what", required=True)
    for command in COMMANDS:
        command.add_to(commands)
    options = parser.parse_args(arguments)
    if options.runs is None:
        options.runs = QUICK_RUNS if options.quick else RUNS
    elif options.runs < 1:
        parser.error(f"--runs is {options.runs}: it must be at least 1")
    try:
        options.command.carry_out(options, start_report())
    except BadOption as error:
        parser.error(str(error))
    return 0


def start_report() -> Report:
    """Versions, machine, time and load, printed and to be written."""
    report = {
        "versions": versions(),
        "machine": machine(),
        "began": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "load": [os.getloadavg()],
    }
    print("versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    print("machine: " + ", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    return report


def versions() -> dict[str, str]:
    """The version of each package that takes part, or "not installed"."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _stop(_signum: int, _frame: object) -> None:
    """Unwind, so that what was started is ended."""
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
