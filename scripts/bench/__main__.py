"""The command line of scripts/bench.sh."""

import argparse
import importlib.metadata
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cases import (
    CASES,
    GROUPS,
    QUICK_CASES,
    QUICK_RUNS,
    QUICK_SYSTEMS,
    RENDEZVOUS,
    SYSTEMS,
    Case,
    interleaved,
    selected,
)
from bench.checkpoint import command as checkpointing
from bench.control import command as controlling
from bench.distill import command as distillation
from bench.errors import NotInstalled
from bench.resize import machine, run_rendezvous, run_trials, system_class
from bench.rows import table

PACKAGES = (
    "edl-elastic", "horovod", "torch", "torchft-nightly", "tritonclient", "grpcio", "kazoo", "safetensors",
    "hdfs-native",
)  # fmt: skip

_DESCRIPTION = """\
Does the same things to the same small job under this project and its peers, in turn, and prints what each cost:
  pause_s        from the last step completed in the old world until all of the new one have completed a step
  steps_lost     completed steps that had to be done again
  total_s        from the request, or the kill, until then
  works_again_s  (coordinator-kill, driver-kill) from the kill until a later request to resize is fulfilled; there,
                 pause_s is the longest time without a completed step until that resize, whose own pause is left out,
                 and gap_before_s the longest one in the second before the kill
  cold_start_s   (systems whose workers train on meanwhile) from the request until the new worker is ready
  failed         runs in which a system did not do it, with the reason
Cases, in the order in which they run:
"""


def _describe() -> str:
    lines = [f"  {case.name:18} {case.text}" for case in CASES]
    lines += [f"  {name:18} = {' and '.join(members)}" for name, members in GROUPS.items()]
    return _DESCRIPTION + "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench.sh")
    commands = parser.add_subparsers(dest="what", required=True)
    resize = commands.add_parser(
        "resize",
        help="resizes and failures, beside the peers",
        description=_describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    resize.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    resize.add_argument("--quick", action="store_true", help="under 10 minutes: ours and Horovod, five cases, 3 runs")
    resize.add_argument("--runs", type=int, help="runs of each case (default: 5, with --quick 3)")
    resize.add_argument("--systems", nargs="+", choices=SYSTEMS, help="default: all")
    resize.add_argument("--cases", nargs="+", metavar="CASE", help="default: all")
    distill = commands.add_parser(
        "distill",
        help="service distillation, beside peers and plain training",
        description=distillation.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    distillation.add_arguments(distill)
    checkpoint = commands.add_parser(
        "checkpoint",
        help="saving and loading, beside PyTorch's own ways",
        description=checkpointing.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    checkpointing.add_arguments(checkpoint)
    control = commands.add_parser(
        "control",
        help="decisions, JobServers and a simulated day at the size of a large cluster",
        description=controlling.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    controlling.add_arguments(control)
    options = parser.parse_args(arguments)
    if options.runs is not None and options.runs < 1:
        parser.error(f"--runs is {options.runs}: it must be at least 1")
    benches = {"distill": distillation.run, "checkpoint": checkpointing.run, "control": controlling.run}
    if options.what in benches:
        try:
            benches[options.what](options, start_report())
        except ValueError as error:
            parser.error(str(error))
        return 0
    names = options.cases or (QUICK_CASES if options.quick else [*(case.name for case in CASES), *RENDEZVOUS])
    try:
        cases = selected(names)
    except ValueError as error:
        parser.error(str(error))
    systems = options.systems or list(QUICK_SYSTEMS if options.quick else SYSTEMS)
    sizes = [size for name, size in RENDEZVOUS.items() if name in names and "edl" in systems]
    run_resize(cases, sizes, systems, options.runs or (QUICK_RUNS if options.quick else 5), options.json)
    return 0


def say(text: str) -> None:
    """Progress goes to stderr; stdout has the result."""
    print(text, file=sys.stderr, flush=True)


def run_resize(
    cases: Sequence[Case], rendezvous_sizes: Sequence[int], systems: Sequence[str], runs: int, to: Path | None
) -> None:
    """Run, print and write."""
    report = start_report()
    report["config"] = {system: configuration(system) for system in systems}
    for system, config in report["config"].items():
        print(f"{system}: {config}", flush=True)
    rows = run_trials(list(interleaved(cases, systems, runs)), say)
    for size in rendezvous_sizes:
        run_rendezvous(size, runs, rows, say)
    report["load"].append(os.getloadavg())
    print(f"medians of {runs} runs; load average {report['load'][0][0]:.1f} before, {report['load'][1][0]:.1f} after")
    print("\n".join(table(rows, cases, systems)))
    if to is not None:
        to.write_text(json.dumps({**report, "rows": rows.as_json()}, indent=1) + "\n")


def start_report() -> dict[str, Any]:
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


def configuration(system: str) -> str:
    """How a system is set up, in words."""
    try:
        return system_class(system).config
    except NotInstalled as error:
        return str(error)


def _stop(_signum: int, _frame: object) -> None:
    """Unwind, so that what was started is ended."""
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
