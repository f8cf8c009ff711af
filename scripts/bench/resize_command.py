"""scripts/bench.sh resize: resizes and failures of a small job, under this project and its peers."""

import argparse
import os

from bench.cases import (
    CASES,
    GROUPS,
    QUICK_CASES,
    QUICK_SYSTEMS,
    RENDEZVOUS,
    SYSTEMS,
    interleaved,
    selected,
)
from bench.command import Command, Report, say
from bench.errors import BadOption, NotInstalled
from bench.resize import run_rendezvous, run_trials, system_class
from bench.rows import Row, table

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="default: all")


def run(options: argparse.Namespace, report: Report) -> list[Row]:
    names = options.cases or (QUICK_CASES if options.quick else [*(case.name for case in CASES), *RENDEZVOUS])
    try:
        cases = selected(names)
    except ValueError as error:
        raise BadOption(str(error)) from error
    systems = options.systems or list(QUICK_SYSTEMS if options.quick else SYSTEMS)
    report["config"] = {system: configuration(system) for system in systems}
    for system, config in report["config"].items():
        print(f"{system}: {config}", flush=True)
    rows = run_trials(list(interleaved(cases, systems, options.runs)), say)
    for name, size in RENDEZVOUS.items():
        if name in names and "edl" in systems:
            run_rendezvous(size, options.runs, rows, say)
    before, after = report["load"][0][0], os.getloadavg()[0]
    print(f"medians of {options.runs} runs; load average {before:.1f} before, {after:.1f} after")
    print("\n".join(table(rows, cases, systems)))
    return rows.as_json()


def configuration(system: str) -> str:
    """How a system is set up, in words."""
    try:
        return system_class(system).config
    except NotInstalled as error:
        return str(error)


COMMAND = Command(
    name="resize",
    help="resizes and failures, beside the peers",
    description=_describe(),
    quick="under 10 minutes: ours and Horovod, five cases, 3 runs",
    run=run,
    add_arguments=add_arguments,
)
