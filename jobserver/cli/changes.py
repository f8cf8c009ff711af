"""edl set, cancel, retry: changes of jobs that live, and of those that ended badly."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import click

from jobserver.cli.client import Api, BadInput, CommandFailed, tell, with_api
from jobserver.cli.following import Told, lasting
from jobserver.cli.names import JOB

#: a number of workers has fewer
_DIGITS = 10
_ENDED = ("succeeded", "failed", "stopped")


@click.command("set")
@click.argument("job", type=JOB)
@click.option("--np", default=None, metavar="NUMBER|auto", help="wanted workers; auto: what its schedule says")
@click.option("--min-np", type=int, default=None, help="fewest workers it may run with")
@click.option("--max-np", type=int, default=None, help="most workers it may have")
@click.option("--priority", type=int, default=None, help="higher is served first, and may take slots")
@click.option("--spares", type=int, default=None, help="standbys kept warm where no job wants the slot")
@click.option("--if-version", default=None, help="only if the job is at this version, as `edl describe` shows it")
@with_api
def set_(api: Api, as_json: bool, job: str, np: str | None, if_version: str | None, **options: int | None) -> None:
    """Change a job that waits or runs: all of the changes, or none if one is refused.

    Workers join and leave at a step boundary, as with `edl scale`. The command, environment, checkpoint, kind and
    schedule of a job never change, nor do the bounds of an external one: submit another job.
    """
    body: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if np is not None:
        body["np"] = wanted(np)
    if not body:
        raise BadInput("nothing is to change: give at least one of --np, --min-np, --max-np, --priority, --spares")
    answer = api.patch(f"/jobs/{job}", body, if_version)
    now = ", ".join(f"{name} {_shown(answer['spec'][name])}" for name in sorted(body))
    tell(answer, as_json, f"job {job} has {now} (version {answer['version']})")


def wanted(np: str) -> int | None:
    """Workers of the argument NP. Raises BadInput."""
    if np != "auto" and not (np.isdecimal() and len(np) < _DIGITS):
        raise BadInput(f"NP is {np!r}: give a number of workers, or auto")
    return None if np == "auto" else int(np)


def _shown(value: object) -> str:
    return "auto" if value is None else str(value)


@click.command()
@click.argument("job", type=JOB)
@click.option("--reason", default="", help="why, in a line: it is shown wherever the job is")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=120.0, show_default=True, help="seconds")
@with_api
def cancel(api: Api, as_json: bool, job: str, reason: str, timeout_s: float) -> None:
    """Stop a job and wait until it has ended.

    Its workers end at their next step. What it leaves stays: records, logs and checkpoints (`edl delete JOB` forgets
    the records, `edl retry JOB` goes on). After --timeout the exit code is 1, and the job goes on stopping.
    """
    found = api.get(f"/jobs/{job}")
    if found["phase"] not in _ENDED:
        api.post(f"/jobs/{job}/stop", {"reason": reason})
        found = _await_end(api, job, timeout_s)
    tell(found, as_json, f"job {job} has ended: {found['phase']}, {found['reason'].partition(chr(10))[0]}")


def _await_end(api: Api, job: str, timeout_s: float) -> dict[str, Any]:
    """Its last state. A server tells something every few seconds, so the limit is kept to that."""
    deadline = time.monotonic() + timeout_s

    def follow() -> Iterator[Told]:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return api.stream(left_s, job=job)

    with contextlib.suppress(TimeoutError):
        for kind, data in lasting(follow):
            parts = data["parts"] if kind == "change" and data["topic"] == f"job/{job}" else {}
            if parts.get("phase") in _ENDED or "missing" in parts:
                break
            if time.monotonic() >= deadline:
                break
    found: dict[str, Any] = api.get(f"/jobs/{job}")
    if found["phase"] not in _ENDED:
        raise CommandFailed(f"job {job} has not ended within --timeout {timeout_s:g} s: {found['reason']}")
    return found


@click.command()
@click.argument("job", type=JOB)
@with_api
def retry(api: Api, as_json: bool, job: str) -> None:
    """Submit a job that failed or was stopped again, under its name.

    It goes on from its newest checkpoint, or from the beginning if it was submitted without --checkpoint. Its spec is
    the one that it had at its end; its events stay, its counters and workers begin anew.
    """
    answer = api.post(f"/jobs/{job}/retry")
    url = answer["spec"]["checkpoint_url"]
    where = f"it goes on from {url}" if url else "it begins anew, because it has no --checkpoint"
    tell(answer, as_json, f"job {job} is submitted again: {where}")
