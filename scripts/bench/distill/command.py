"""scripts/bench.sh distill: what service distillation costs, beside peers and beside training without it."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.rows import Row

DESCRIPTION = """\
Measures service distillation on this machine, each case beside what it is compared with, in turns:
  client-cpu-tcp            CPU of a request of 32 uint8 images of 224 x 224 at the student; Triton's clients
  server-cpu                CPU of such a request at a teacher whose model costs nothing
  handover                  CPU of the trainer's thread per batch, beyond what the DataLoader's own next() takes
  student-vs-plain-python   batches a second of a Python-bound loop, over those of plain training
  student-vs-plain-compute  the same for a loop that computes
  student-vs-inprocess      the same over a loop that computes the teacher's answers itself, and over the ceiling
  teacher-kill              the longest gap of the student when one of two teachers gets SIGKILL
  teacher-stop              the same with SIGSTOP
  balance-sim               simulated: useful time of 40 unequal teachers for 8 students, over the optimum
"""


@dataclass(frozen=True, slots=True)
class Case:
    """measure(runs) gives the rows; `bound` is what our own median of `metric` must reach, None if nothing is asked."""

    measure: Callable[[int], list[Row]]
    metric: str
    bound: float | None
    at_least: bool = False

    def reached(self, median: float) -> bool:
        return self.bound is None or (median >= self.bound if self.at_least else median <= self.bound)


def cases() -> dict[str, Case]:
    """By name; imported late, since the students load torch."""
    from bench.distill import balance_sim, ratios, server_cpu, students

    return {
        "client-cpu-tcp": Case(students.client_cpu, "cpu_ms", 0.7),
        "server-cpu": Case(lambda runs: server_cpu.measure(runs=runs), "cpu_ms", 0.9),
        "handover": Case(students.handover, "cpu_ms", 0.1),
        "student-vs-plain-python": Case(partial(ratios.vs_plain, "student-vs-plain-python"), "ratio", 0.97, True),
        "student-vs-plain-compute": Case(partial(ratios.vs_plain, "student-vs-plain-compute"), "ratio", 0.97, True),
        "student-vs-inprocess": Case(ratios.vs_inprocess, "ratio_of_ceiling", 0.97, True),
        "teacher-kill": Case(students.teacher_kill, "gap_s", 0.1),
        "teacher-stop": Case(students.teacher_stop, "gap_s", 2.5),
        "balance-sim": Case(balance_sim.balance_sim, "ratio", 0.97, True),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--quick", action="store_true", help="under 10 minutes: 3 runs of each case")
    parser.add_argument("--runs", type=int, help="runs of each case (default: 5, with --quick 3)")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="default: all")


def run(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Measure, print and write. Raises ValueError for a case that is not known."""
    known = cases()
    names = options.cases or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no case {unknown[0]!r}: use {', '.join(known)}")
    runs = options.runs or (3 if options.quick else 5)
    rows: list[Row] = []
    for number, name in enumerate(names, 1):
        began_s = time.monotonic()
        print(f"[{number}/{len(names)}] {name}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        found = known[name].measure(runs)
        rows += found
        print("\n".join(lines(found, known[name])), flush=True)
        print(f"    {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    report["load"].append(os.getloadavg())
    if options.json is not None:
        options.json.write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n")


def lines(rows: Iterable[Row], case: Case) -> list[str]:
    """The table: a line for each row, with the bound on the row that has one."""
    told = []
    for row in rows:
        line = f"{row['case']:25} {row['system']:18} {row['metric']:22} {row['median']:>9g} {row['unit']:4}"
        line += f" {row['reason']}" if "reason" in row else f" runs {_runs(row['runs'])}"
        if (row["system"], row["metric"]) == ("edl", case.metric) and case.bound is not None:
            sign = ">=" if case.at_least else "<="
            line += f"   must be {sign} {case.bound:g}: {'pass' if case.reached(row['median']) else 'MISS'}"
        told.append(line)
    return told


def _runs(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
