"""What the sub-commands of scripts/bench.sh share: their options, measuring case by case, the table, the file.

Invariant: a case that is not known is refused before anything is measured. Progress goes to stderr, the result to
stdout and, with --json, whole into a file.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BadOption
from bench.rows import Row

RUNS, QUICK_RUNS = 5, 3

Report = dict[str, Any]


def _nothing(_parser: argparse.ArgumentParser) -> None:
    """Most commands have no option of their own."""


@dataclass(frozen=True, slots=True)
class Command:
    """One sub-command.

    run(options, report) measures, prints and returns the rows, and may add to the report; `options.runs` is how many. A
    BadOption says what is wrong with the options.
    """

    name: str
    help: str
    description: str
    #: what --quick does
    quick: str
    run: Callable[[argparse.Namespace, Report], list[Row]]
    add_arguments: Callable[[argparse.ArgumentParser], None] = _nothing

    def add_to(self, parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        parser = parsers.add_parser(
            self.name,
            help=self.help,
            description=self.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(command=self)
        parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
        parser.add_argument("--quick", action="store_true", help=self.quick)
        parser.add_argument("--runs", type=int, help=f"runs of each case (default: {RUNS}, with --quick {QUICK_RUNS})")
        parser.add_argument("--cases", nargs="+", metavar="CASE", help="default: all")
        self.add_arguments(parser)

    def carry_out(self, options: argparse.Namespace, report: Report) -> None:
        """Run it and write the file that is asked for. Raises BadOption as `run` does."""
        rows = self.run(options, report)
        report["load"].append(os.getloadavg())
        if options.json is not None:
            options.json.write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class Bound:
    """What our own median of `metric` must reach; `value` is None where nothing is asked."""

    metric: str
    value: float | None
    at_least: bool = False

    def reached(self, median: float) -> bool:
        return self.value is None or (median >= self.value if self.at_least else median <= self.value)


@dataclass(frozen=True, slots=True)
class Measurement:
    """measure(runs) gives the rows of the cases in `bounds`, which is not empty, and of parts of the first."""

    measure: Callable[[int], list[Row]]
    bounds: Mapping[str, Bound]

    def bound(self, case: str) -> Bound:
        """Of a row's case; that of the first where it is only a part."""
        return self.bounds.get(case) or next(iter(self.bounds.values()))


def single(
    name: str, measure: Callable[[int], list[Row]], metric: str, bound: float | None, *, at_least: bool = False
) -> Measurement:
    """A measurement of one case."""
    return Measurement(measure, {name: Bound(metric, bound, at_least)})


def measured(measurements: Sequence[Measurement], names: Sequence[str] | None, runs: int) -> list[Row]:
    """The rows of the cases `names` (None: of all), told as they come. BadOption for a case that is not known."""
    known = [name for item in measurements for name in item.bounds]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise BadOption(f"there is no case {unknown[0]!r}: use {', '.join(known)}")
    left_out = set() if names is None else set(known) - set(names)
    todo = [item for item in measurements if item.bounds.keys() - left_out]
    rows: list[Row] = []
    for number, item in enumerate(todo, 1):
        began_s = time.monotonic()
        cases = [name for name in item.bounds if name not in left_out]
        say(f"[{number}/{len(todo)}] {' '.join(cases)}, load {os.getloadavg()[0]:.1f}")
        found = [row for row in item.measure(runs) if row["case"] not in left_out]
        rows += found
        print("\n".join(line(row, item.bound(row["case"])) for row in found), flush=True)
        say(f"    {time.monotonic() - began_s:.0f} s")
    return rows


def line(row: Row, bound: Bound) -> str:
    """A line of the table; on the row that has a bound it says whether that is kept."""
    told = f"{row['case']:25} {row['system']:18} {row['metric']:22} {row['median']:>9g} {row['unit']:4}"
    told += f" {row['reason']}" if "reason" in row else f" runs {_runs(row['runs'])}"
    if (row["system"], row["metric"]) == ("edl", bound.metric) and bound.value is not None:
        sign = ">=" if bound.at_least else "<="
        told += f"   must be {sign} {bound.value:g}: {'pass' if bound.reached(row['median']) else 'MISS'}"
    return told


def _runs(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)
