"""edl teacher ls, top: the services with their teachers and students, from a JobServer or straight from ZooKeeper."""

import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edl_collective.coord.errors import CoordError
from jobserver.cli.client import Api, BadInput, CommandFailed, print_json, print_table, with_api
from jobserver.cli.names import SERVICE

Json = dict[str, Any]
#: the services, or the one that is named
Look = Callable[[str | None], Json]
_CONNECT_TIMEOUT_S = 10.0


def with_look(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say where to look, and pass `look` and `as_json` to the command."""

    @click.option("--zookeeper", metavar="HOSTS", default=None, help="look there instead of asking a JobServer")
    @click.option("--root", default="/edl", show_default=True, envvar="EDL_ZOOKEEPER_ROOT", help="of EDL in ZooKeeper")
    @with_api
    @functools.wraps(command)
    def wrapped(*, api: Api, zookeeper: str | None, root: str, **arguments: Any) -> None:
        if zookeeper is None:
            command(
                look=lambda service: api.get("/services" if service is None else f"/services/{service}"), **arguments
            )
            return
        try:
            _with_store(zookeeper, root, api.key, lambda look: command(look=look, **arguments))
        except CoordError as error:
            raise CommandFailed(str(error)) from error
        except ValueError as error:
            raise BadInput(str(error)) from error

    return wrapped


def _with_store(hosts: str, root: str, key: Path, use: Callable[[Look], None]) -> None:
    from distill.listing import Listing, listings
    from edl_collective.coord.key_file import KEY_FILE_VARIABLE, services_access
    from edl_collective.coord.mirror import Mirror
    from edl_collective.coord.paths import Paths
    from edl_collective.coord.zk_store import ZkStore
    from jobserver.service_rows import service_detail, service_rows

    paths = Paths(root)
    logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # what it says besides, the error says
    access = services_access(hosts, root, {**os.environ, KEY_FILE_VARIABLE: str(key)})
    store = ZkStore(hosts, access=access).start(_CONNECT_TIMEOUT_S)
    mirror = Mirror(store, paths.services, lambda: None)

    def look(service: str | None) -> Json:
        found = listings(mirror.refresh(), paths)
        if service is None:
            return {"services": service_rows(found, {})}
        if service not in found:
            raise CommandFailed(f"there is no service {service}")
        return service_detail(service, found.get(service, Listing()))

    try:
        use(look)
    finally:
        mirror.close()
        store.close()


@click.command()
@click.argument("service", type=SERVICE, required=False)
@with_look
def ls(look: Look, as_json: bool, service: str | None) -> None:
    """List the services, or the teachers and students of SERVICE.

    RATE is what teachers can answer and DEMAND what students could use, in samples a second. STARVED is the part of
    their time that students wait for teachers: more teachers help, if it is above a few percent.
    """
    answer = look(service)
    if as_json:
        print_json(answer)
    else:
        _print(answer)


@click.command()
@click.argument("service", type=SERVICE, required=False)
@click.option("--every", "every_s", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="seconds")
@click.option("--count", type=click.IntRange(min=1), default=None, help="end after so many looks (default: Ctrl-C)")
@with_look
def top(look: Look, as_json: bool, service: str | None, every_s: float, count: int | None) -> None:
    """Show what `edl teacher ls` shows, again and again; with --json one line for each look."""
    try:
        while True:
            answer = look(service)
            if as_json:
                click.echo(json.dumps(answer))
            else:
                if sys.stdout.isatty():
                    click.clear()
                _print(answer)
            if count is not None:
                count -= 1
                if count == 0:
                    return
            time.sleep(every_s)
    except KeyboardInterrupt:
        return


def _print(answer: Json) -> None:
    if "services" in answer:
        rows: list[tuple[object, ...]] = [_service_cells(row) for row in answer["services"]]
        print_table(_SERVICE, rows)
        return
    print_table(_SERVICE, [_service_cells(answer)])
    click.echo()
    print_table(_TEACHER, [_teacher_cells(row) for row in answer["teacher_records"]])
    click.echo()
    print_table(_STUDENT, [_student_cells(row) for row in answer["student_records"]])
    for problem in answer["problems"]:
        click.echo(f"Warning: {problem}", err=True)


_SERVICE = ("SERVICE", "TEACHERS", "STUDENTS", "RATE", "ANSWERED", "DEMAND", "QUEUE", "STARVED", "JOBS")
_TEACHER = ("TEACHER", "URL", "MODEL", "RATE", "ANSWERED", "P50 MS", "P99 MS", "QUEUE", "STATE", "STUDENTS")
_STUDENT = ("STUDENT", "RATE", "DEMAND", "STARVED", "STARVED S", "WAIT S/STEP", "TEACHERS", "WAITS FOR")


def _service_cells(row: Json) -> tuple[object, ...]:
    draining = f" ({row['draining']} draining)" if row["draining"] else ""
    figures = (_rate(row["rate"]), _rate(row["answered_rate"]), _rate(row["demand"]), row["queue"])
    jobs = " ".join(row["jobs"]) or None
    return (row["service"], f"{row['teachers']}{draining}", row["students"], *figures, f"{row['starved']:.0%}", jobs)


def _teacher_cells(row: Json) -> tuple[object, ...]:
    latency = (_ms(row["latency_p50_s"]), _ms(row["latency_p99_s"]))
    state = "draining" if row["draining"] else "ready"
    figures = (_rate(row["rate"]), _rate(row["answered_rate"]), *latency, row["queue"])
    return (row["teacher"], row["url"], row["model"], *figures, state, " ".join(row["students"]) or None)


def _student_cells(row: Json) -> tuple[object, ...]:
    teachers = " ".join(f"{t}{'+' if t in row['shared'] else ''}" for t in row["teachers"])
    waits = (f"{row['starved']:.0%}", f"{row['starved_s']:.1f}", f"{row['wait_s_per_step']:.3f}")
    figures = (_rate(row["rate"]), _rate(row["demand"]), *waits)
    return (row["student"], *figures, teachers or None, row["waiting_for"])


def _rate(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f}"


def _ms(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds * 1000:.1f}"
