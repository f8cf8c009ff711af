"""Rows of a bench: collected run by run, written as JSON, shown as a table beside each other. [pure]"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.cases import Case

UNITS = {
    "pause_s": "s",
    "total_s": "s",
    "works_again_s": "s",
    "cold_start_s": "s",
    "gap_before_s": "s",
    "steps_lost": "steps",
    "failed": "runs",
    "not_applicable": "runs",
}
#: in the order in which the table shows them
SHOWN = ("pause_s", "steps_lost", "works_again_s", "gap_before_s", "total_s", "cold_start_s")

Row = dict[str, Any]


def row(case: str, system: str, metric: str, unit: str, runs: Sequence[float]) -> Row:
    """One row of a bench."""
    median = round(statistics.median(runs), 4)
    values = [round(run, 4) for run in runs]
    return {"case": case, "system": system, "metric": metric, "unit": unit, "median": median, "runs": values}


@dataclass
class Rows:
    """Values by (case, system, metric), in the order in which they came, and why something failed."""

    values: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    #: by (case, system, "failed" or "not_applicable")
    reasons: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)
    #: rows that another program measured, as they are
    others: list[Row] = field(default_factory=list)

    def add(self, case: str, system: str, **metrics: float) -> None:
        """One run of a case."""
        for metric, value in metrics.items():
            self.values.setdefault((case, system, metric), []).append(value)

    def fail(self, case: str, system: str, reason: str, metric: str = "failed") -> None:
        """One run of a case that led to no figures."""
        self.reasons.setdefault((case, system, metric), []).append(reason)

    def failed(self, case: str, system: str) -> bool:
        """Whether a run of the case failed."""
        return (case, system, "failed") in self.reasons

    def as_json(self) -> list[Row]:
        """One row for each metric; a failure is a row of the metric "failed" that counts runs and says why."""
        found = [row(case, system, metric, UNITS[metric], runs) for (case, system, metric), runs in self.values.items()]
        for (case, system, metric), reasons in self.reasons.items():
            counted = {"case": case, "system": system, "metric": metric, "unit": UNITS[metric], "median": len(reasons)}
            found.append({**counted, "runs": [1] * len(reasons), "reason": "; ".join(dict.fromkeys(reasons))})
        return found + self.others

    def median(self, case: str, system: str, metric: str) -> float | None:
        """The median of what was measured, or None."""
        runs = self.values.get((case, system, metric))
        return statistics.median(runs) if runs else None


def table(rows: Rows, cases: Sequence[Case], systems: Sequence[str]) -> list[str]:
    """Lines that show all systems side by side, peers with their ratio to the first system, and the targets."""
    lines = [_line(["case", "metric", *systems, "must reach", ""])]
    for case in cases:
        failed = [rows.failed(case.name, system) for system in systems]
        for metric in SHOWN:
            medians = [rows.median(case.name, system, metric) for system in systems]
            if any(m is not None for m in medians) or (metric == "pause_s" and any(failed)):
                lines.append(_metric_line(case, metric, systems, medians, failed))
    lines += [
        _line([other["case"], other["metric"], f"{other['median']:.3g} {other['unit']}"]) for other in rows.others
    ]
    return lines + _reasons(rows)


def _metric_line(
    case: Case, metric: str, systems: Sequence[str], medians: Sequence[float | None], failed: Sequence[bool]
) -> str:
    ours = medians[0] if systems[0] == "edl" else None
    cells = [_cell(m, ours, f, first=n == 0) for n, (m, f) in enumerate(zip(medians, failed, strict=True))]
    target = case.target(metric) if systems[0] == "edl" else None
    reached = "" if target is None else f"<= {target:g}"
    verdict = "" if target is None else "pass" if ours is not None and ours <= target and not failed[0] else "MISS"
    return _line([case.name, metric, *cells, reached, verdict])


def _cell(median: float | None, ours: float | None, failed: bool, *, first: bool) -> str:
    if median is None:
        return "failed" if failed else "-"
    text = f"{median:.3g}" + ("!" if failed else "")
    return text if first or not ours else f"{text} ({median / ours:.1f}x)"


def _line(cells: Iterable[str]) -> str:
    case, metric, *rest = cells
    return f"{case:17} {metric:13} " + " ".join(f"{cell:>16}" for cell in rest).rstrip()


def _reasons(rows: Rows) -> list[str]:
    """What failed and why, below the table; "!" marks a median of the runs that did not fail."""
    return [
        f"{metric}: {case} {system}, {len(reasons)} x: {'; '.join(dict.fromkeys(reasons))}"
        for (case, system, metric), reasons in rows.reasons.items()
    ]
