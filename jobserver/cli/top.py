"""edl top: the jobs that live, and how they get on, as it changes."""

import json
import sys
import time
from typing import Any

import click

from jobserver.cli.client import Api, print_json, print_table, with_api
from jobserver.cli.following import lasting

Json = dict[str, Any]
_ENDED = ("succeeded", "failed", "stopped")


@click.command()
@click.option("--once", is_flag=True, help="look once")
@click.option("--all", "everything", is_flag=True, help="also the jobs that have ended")
@click.option(
    "--every", "every_s", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="seconds, at least"
)
@with_api
def top(api: Api, as_json: bool, once: bool, everything: bool, every_s: float) -> None:
    """Show how the jobs get on, as it changes, until Ctrl-C; with --json one line for each look.

    WORKERS: in the world, of those that are planned. TRAIN: the part of its time since its submission in which the job
    trained. WAIT S: seconds that each step waits for teachers. LOST TO: what took most of the rest of its time.
    """
    try:
        if once:
            _print(look(api, everything), as_json, once)
            return
        shown_s = -every_s
        for _ in lasting(lambda: api.stream(topics="jobs")):  # also a beat: time itself changes the ledgers
            if time.monotonic() - shown_s >= every_s:
                _print(look(api, everything), as_json, once)
                shown_s = time.monotonic()
    except KeyboardInterrupt:
        return


def _print(rows: list[Json], as_json: bool, once: bool) -> None:
    if as_json and once:
        print_json({"jobs": rows})
    elif as_json:
        click.echo(json.dumps({"jobs": rows}))
    else:
        if sys.stdout.isatty() and not once:
            click.clear()
        show(rows)


def look(api: Api, everything: bool) -> list[Json]:
    """The rows of jobs with the ledgers of their time; those that run come first, then those that wait."""
    ledgers = api.get("/goodput")["jobs"]
    none: Json = {"goodput": {}, "train_part": None}
    jobs = [{**job, **ledgers.get(job["job"], none)} for job in api.get("/jobs")["jobs"]]
    alive = [job for job in jobs if everything or job["phase"] not in _ENDED]
    return sorted(alive, key=lambda job: (job["phase"] in _ENDED, job["queue"] or 0, -job["priority"], job["job"]))


def show(rows: list[Json]) -> None:
    waiting = sum(row["queue"] is not None for row in rows)
    rate = sum(row["samples_per_s"] or 0.0 for row in rows if row["phase"] == "running")
    workers = sum(row["world_size"] for row in rows)
    click.echo(f"{len(rows)} jobs, {waiting} of them wait; {workers} workers train {rate:.1f} samples/s")
    print_table(
        ("JOB", "PHASE", "PRIORITY", "WORKERS", "STEP", "SAMPLES/S", "TRAIN", "LOST TO", "WAIT S"), _cells(rows)
    )


def _cells(rows: list[Json]) -> list[tuple[object, ...]]:
    return [
        (
            row["job"],
            row["phase"] if row["queue"] is None else f"{row['phase']} (no. {row['queue']})",
            row["priority"],
            f"{row['world_size']}/{row['workers']}",
            row["step"],
            None if row["samples_per_s"] is None else f"{row['samples_per_s']:.1f}",
            None if row["train_part"] is None else f"{row['train_part']:.0%}",
            _lost_to(row["goodput"]),
            None if row["teacher_wait_s_per_step"] is None else f"{row['teacher_wait_s_per_step']:.3f}",
        )
        for row in rows
    ]


def _lost_to(ledger: dict[str, float]) -> str | None:
    """The kind of time, training apart, that took most."""
    total_s = sum(ledger.values())
    most_s, kind = max(((seconds, kind) for kind, seconds in ledger.items() if kind != "train"), default=(0.0, ""))
    return f"{kind} {most_s / total_s:.0%}" if most_s > 0 else None
