"""edl logs: the log of a worker, read through the JobServer from the node that has it."""

import sys
import time
from typing import Any

import click

from jobserver.cli.client import Api, BadInput, print_json, with_api
from jobserver.cli.names import JOB, WORKER

FOLLOW_INTERVAL_S = 0.5


@click.command()
@click.option("-f", "--follow", is_flag=True, help="go on until the worker has ended")
@click.argument("job", type=JOB)
@click.argument("worker", type=WORKER, required=False)
@with_api
def logs(api: Api, as_json: bool, job: str, worker: str | None, follow: bool) -> None:
    """Show the log of WORKER (default: rank 0, else the oldest worker)."""
    if as_json and follow:
        raise BadInput("--json and --follow do not go together")
    found = api.get(f"/jobs/{job}")
    chosen = worker or _default_worker(found)
    if as_json:
        text, end = _read(api, job, chosen, 0)
        print_json({"job": job, "worker": chosen, "text": text.decode("utf-8", "replace"), "next_offset": end})
        return
    offset = 0
    while True:
        ended = _has_ended(found, chosen)  # asked before reading: what it wrote until then is shown
        data, offset = _read(api, job, chosen, offset)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        if ended or not follow:
            return
        time.sleep(FOLLOW_INTERVAL_S)
        found = api.get(f"/jobs/{job}")


def _read(api: Api, job: str, worker: str, offset: int) -> tuple[bytes, int]:
    """Everything from `offset` to the present end."""
    parts: list[bytes] = []
    while True:
        data, offset = api.log(job, worker, offset)
        if not data:
            return b"".join(parts), offset
        parts.append(data)


def _default_worker(found: dict[str, Any]) -> str:
    members = found["rendezvous"]["members"]  # [worker, node, rank, ...], in the order of their ranks
    records = [record["worker"] for record in found["worker_records"]]
    names = [member[0] for member in members if member[0] in records] or records
    if not names:
        raise BadInput(f"job {found['job']} has no worker yet: {found['reason']}")
    return str(names[0])


def _has_ended(found: dict[str, Any], worker: str) -> bool:
    states = {record["worker"]: record["state"] for record in found["worker_records"]}
    return states.get(worker, "exited") in ("exited", "lost")
