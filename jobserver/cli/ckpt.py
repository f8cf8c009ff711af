"""edl ckpt: look at checkpoints; needs no JobServer and no web framework."""

from typing import Any

import click

from jobserver.cli.client import CommandFailed, print_json, print_table


@click.group()
def ckpt() -> None:
    """Look at checkpoints."""


@ckpt.command("ls")
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def list_(url: str, as_json: bool) -> None:
    """List the checkpoints at URL, newest first, with their condition."""
    from checkpoints import CheckpointError, list_checkpoints

    try:
        found = list_checkpoints(url)
    except (CheckpointError, ValueError, OSError) as error:
        raise CommandFailed(str(error)) from error
    if as_json:
        print_json({"checkpoints": [_row(info) for info in found]})
        return
    rows: list[tuple[object, ...]] = [
        tuple(row[name] for name in ("name", "condition", "epoch", "global_step", "size_bytes", "created", "problem"))
        for row in map(_row, found)
    ]
    print_table(("CHECKPOINT", "CONDITION", "EPOCH", "STEP", "BYTES", "CREATED", "PROBLEM"), rows)


def _row(info: Any) -> dict[str, Any]:
    return {
        "name": info.name,
        "number": info.number,
        "condition": info.condition.value,
        "epoch": None if info.status is None else info.status.epoch_no,
        "driver_epoch": info.driver_epoch,
        "global_step": info.global_step,
        "size_bytes": info.size_bytes,
        "created": info.created,
        "problem": info.problem,
    }
