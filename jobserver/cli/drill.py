"""edl drill: do faults to a small job on a private cluster of this machine, and show what they cost."""

import contextlib
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click

from jobserver.cli.client import BadInput, CommandFailed, print_table
from jobserver.drill.cluster import ClusterError
from jobserver.drill.drill import NoTraining, Plan, check_training, run
from jobserver.drill.faults import FAULTS, Fault
from jobserver.drill.network import NetworkError, missing
from jobserver.drill.verdict import Book
from jobserver.local_zookeeper import LocalZooKeeperError

#: ZooKeeper of this machine grants no shorter sessions
SHORTEST_SESSION_S = 1.0

_FAULTS_HELP = "\n".join(f"  {name:<10} {fault.what}" for name, fault in FAULTS.items())
_HELP = f"""\
Break things, and see that training goes on.

Starts a private cluster on this machine (ZooKeeper, two JobServers, two nodes) and a small training job on it, then
does these faults to it, one after another:

\b
{_FAULTS_HELP}

For each it prints the pause (the longest time in which no worker completed a step), the steps that had to be done
again, the samples that were used twice or never in an epoch, and whether that is within its limit. The exit code is 0
if nothing failed, 1 if something did, 2 for bad input. Without root the faults that need network namespaces are left
out.

The limits are what must hold on a busy machine. With --session-timeout S, a lost node costs at most S + 1 seconds.
On a machine that is much slower or much busier, --slack FACTOR multiplies all of them; steps and samples have no slack.
"""


@click.command(help=_HELP)
@click.option("--local", is_flag=True, help="on this machine, which is the only place so far; must be given")
@click.option("--faults", default=",".join(FAULTS), metavar="A,B,...", help="which ones, in this order (default: all)")
@click.option("--workers", type=click.IntRange(2, 16), default=4, show_default=True, help="workers of the job")
@click.option(
    "--session-timeout", type=float, default=2.0, show_default=True, metavar="SECONDS", help="of all sessions"
)
@click.option(
    "--slack", type=float, default=1.0, show_default=True, metavar="FACTOR", help="multiplies all limits; at least 1"
)
@click.option("--seed", type=int, default=1, show_default=True, help="chooses ranks and nodes, and the samples' order")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="write the rows there too")
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="keep logs and records in this new folder")
def drill(
    local: bool,
    faults: str,
    workers: int,
    session_timeout: float,
    slack: float,
    seed: int,
    json_file: Path | None,
    keep: Path | None,
) -> None:
    chosen = _chosen(local, faults, session_timeout)
    if not 1.0 <= slack < math.inf:
        raise BadInput(f"--slack is {slack:g}: it multiplies the limits and must be at least 1")
    if keep is not None and keep.exists():
        raise BadInput(f"--keep {keep} exists already: give a new folder")
    load = os.getloadavg()
    with _interruptible(), ExitStack() as stack:
        try:
            check_training()
            if keep is None:
                base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edl-drill-")))
            else:
                base = keep.absolute()
                base.mkdir(parents=True)
            plan = Plan(chosen, base, workers, seed, session_timeout, slack)
            book = run(plan, _Progress())
        except KeyboardInterrupt:
            click.echo("drill: stopped; nothing is left running", err=True)
            sys.exit(130)
        except (NoTraining, LocalZooKeeperError, NetworkError, OSError) as error:
            raise CommandFailed(str(error)) from error
        except ClusterError as error:
            raise CommandFailed(f"the cluster failed: {error}") from error
    if json_file is not None:
        _write(json_file, book, load, plan)
    _print(book, slack)
    if not book.passed:
        sys.exit(1)


class _Progress:
    """Lines with the seconds since the start."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def __call__(self, text: str) -> None:
        click.echo(f"[{time.monotonic() - self._began_s:6.1f} s] {text}", err=True)


def _chosen(local: bool, faults: str, session_timeout_s: float) -> list[Fault]:
    if not local:
        raise BadInput("say --local: a drill starts a cluster of its own on this machine and touches no other")
    if session_timeout_s < SHORTEST_SESSION_S:
        raise BadInput(f"--session-timeout is {session_timeout_s:g}: ZooKeeper grants at least {SHORTEST_SESSION_S:g}")
    names = [name.strip() for name in faults.split(",") if name.strip()]
    if not names:
        raise BadInput(f"--faults is empty: choose among {', '.join(FAULTS)}")
    for name in names:
        if name not in FAULTS:
            raise BadInput(f"--faults names {name!r}: choose among {', '.join(FAULTS)}")
    chosen = [FAULTS[name] for name in names]
    lacking = missing() if all(fault.needs_network for fault in chosen) else None
    if lacking:
        raise BadInput(f"--faults {faults} {lacking}")
    return chosen


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM is like Ctrl-C, and only the first of them counts: the way down is not interrupted."""

    def once(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, once) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(path: Path, book: Book, load: tuple[float, float, float], plan: Plan) -> None:
    told = {
        "passed": book.passed,
        "workers": plan.workers,
        "seed": plan.seed,
        "session_timeout_s": plan.session_timeout_s,
        "slack": plan.slack,
        "load": [*load, *os.getloadavg()],
        "rows": [row.plain() for row in book.rows],
    }
    path.write_text(json.dumps(told, indent=1) + "\n")


def _print(book: Book, slack: float) -> None:
    rows: list[tuple[object, ...]] = []
    for row in book.rows:
        cost = row.cost
        verdict = {True: "pass", False: "FAIL", None: "not done"}[row.passed]
        figures: tuple[object, ...] = (None,) * 5
        if cost is not None:
            resized = None if cost.resize_s is None else f"{cost.resize_s:.2f}"
            figures = (f"{cost.pause_s:.2f}", resized, cost.lost_steps, cost.doubled_samples, cost.missing_samples)
        rows.append((row.fault, *figures, f"{row.limits.pause_s:g}", row.limits.resize_s, verdict, row.why or None))
    columns = ("FAULT", "PAUSE S", "RESIZED S", "LOST STEPS", "DOUBLED", "MISSING", "PAUSE LIMIT", "RESIZE LIMIT")
    print_table((*columns, "VERDICT", "WHY"), rows)
    if slack != 1.0:
        click.echo(f"all limits are {slack:g} times the usual ones (--slack)")
