"""edl ckpt ls, show, pin, unpin, gc; and what all of `edl ckpt` shares.

Exit codes: 0 done; 1 the file system refused or does not answer, or a checkpoint is damaged or not there; 2 bad input.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import click

from checkpoints.errors import CheckpointError, CheckpointUnsupported
from jobserver.cli.client import BadInput, CommandFailed, print_json, print_table

json_option = click.option("--json", "as_json", is_flag=True, help="print JSON")
checkpoint_argument = partial(click.argument, "checkpoint", required=False)


@contextmanager
def told() -> Iterator[None]:
    """Turn what goes wrong into one line and an exit code."""
    try:
        yield
    except (CheckpointUnsupported, ValueError) as error:
        raise BadInput(str(error)) from error
    except (CheckpointError, OSError) as error:
        raise CommandFailed(str(error)) from error


def which(checkpoint: str | None) -> int | str | None:
    """A CHECKPOINT argument as a number or a name."""
    if checkpoint is None or not checkpoint.isdecimal() or len(checkpoint) > 18:
        return checkpoint
    return int(checkpoint)


@click.command()
@click.argument("url")
@json_option
def ls(url: str, as_json: bool) -> None:
    """List the checkpoints at URL, newest first, with their condition.

    Sizes are compared; `edl ckpt verify` compares contents. "unfinished" is a save in progress or one that died.
    """
    from checkpoints import list_checkpoints

    with told():
        found = list_checkpoints(url)
    if as_json:
        print_json({"checkpoints": [row_of(info) for info in found]})
    elif found:
        print_rows(found)
    else:
        click.echo(f"there are no checkpoints at {url}", err=True)


def print_rows(found: list[Any]) -> None:
    """Checkpoints as a table."""
    names = ("name", "condition", "pinned", "epoch", "global_step", "size_bytes", "created", "problem")
    rows = [row_of(info) | {"pinned": "pinned" if info.pinned else None} for info in found]
    columns = ("CHECKPOINT", "CONDITION", "PIN", "EPOCH", "STEP", "BYTES", "CREATED", "PROBLEM")
    print_table(columns, [tuple(None if row[name] is None else printable(row[name]) for name in names) for row in rows])


def printable(value: object) -> str:
    """A value as text that moves no cursor and sets no color: whoever can write a manifest chooses what is in it."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(value))


def row_of(info: Any) -> dict[str, Any]:
    """A checkpoint as JSON."""
    return {
        "name": info.name,
        "number": info.number,
        "condition": info.condition.value,
        "pinned": info.pinned,
        "epoch": None if info.status is None else info.status.epoch_no,
        "driver_epoch": info.driver_epoch,
        "global_step": info.global_step,
        "size_bytes": info.size_bytes,
        "created": info.created,
        "problem": info.problem,
    }


@click.command()
@click.argument("url")
@checkpoint_argument()
@json_option
def show(url: str, checkpoint: str | None, as_json: bool) -> None:
    """Show one checkpoint: where the training stood, and its files. Without CHECKPOINT the newest valid one."""
    from checkpoints import store
    from checkpoints.drivers import opened
    from checkpoints.transfer import choose
    from checkpoints.upkeep import find

    with told(), opened(url) as folder:
        wanted = which(checkpoint)
        examined = choose(folder, None) if wanted is None else store.examine(folder, find(folder, wanted))
    manifest = examined.manifest
    shown = row_of(examined.info(url)) | {
        "status": manifest.status.to_dict() if manifest else None,
        "shards": [vars(shard) for shard in manifest.shards] if manifest else [],
    }
    if as_json:
        print_json(shown)
        return
    status = shown.pop("status") or {}
    for name, value in (shown | {f"status.{name}": value for name, value in status.items()}).items():
        if name != "shards" and value is not None:
            click.echo(f"{printable(name) + ':':26}{printable(value)}")
    for shard in shown["shards"]:
        click.echo(f"{'shard:':26}{shard['name']}  {shard['size_bytes']} bytes  {shard['checksum']}")


@click.command()
@click.argument("url")
@click.argument("checkpoint")
@json_option
def pin(url: str, checkpoint: str, as_json: bool) -> None:
    """Keep CHECKPOINT whatever the rules say, until it is unpinned."""
    from checkpoints import pin as pin_it

    with told():
        name = pin_it(url, _given(checkpoint))
    if as_json:
        print_json({"name": name, "pinned": True})
    else:
        click.echo(f"pinned {name}")


@click.command()
@click.argument("url")
@click.argument("checkpoint")
@json_option
def unpin(url: str, checkpoint: str, as_json: bool) -> None:
    """Let the rules decide about CHECKPOINT again."""
    from checkpoints import unpin as unpin_it

    with told():
        name = unpin_it(url, _given(checkpoint))
    if as_json:
        print_json({"name": name, "pinned": False})
    else:
        click.echo(f"unpinned {name}")


def _given(checkpoint: str) -> int | str:
    found = which(checkpoint)
    assert found is not None, "the argument is required"
    return found


def keep_options(command: Callable[..., None]) -> Callable[..., None]:
    """The rules of retention as options."""
    for option in (
        click.option("--mode", type=click.Choice(["max", "min"]), default="max", show_default=True),
        click.option("--metric", default="", help="a number among the user fields of the status, for --best"),
        click.option("--best", type=int, default=0, help="keep so many with the best --metric"),
        click.option("--every-epochs", type=int, help="keep the end of each so many epochs"),
        click.option("--keep", "last", type=int, required=True, help="keep so many of the newest, at least 1"),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("url")
@keep_options
@click.option("--yes", is_flag=True, help="remove; without it nothing is touched")
@json_option
def gc(
    url: str,
    last: int,
    every_epochs: int | None,
    best: int,
    metric: str,
    mode: Literal["max", "min"],
    yes: bool,
    as_json: bool,
) -> None:
    """Collect what no rule keeps, and the remains of dead saves. A dry run, unless --yes is given.

    One that any rule keeps is kept. The newest valid one and pinned ones never go, nor what may be a save in progress.

    \b
    edl ckpt gc hdfs://nn:8020/run --keep 3
    edl ckpt gc hdfs://nn:8020/run --keep 3 --every-epochs 10 --best 2 --metric accuracy --yes
    """
    from checkpoints import Keep, collect
    from checkpoints.upkeep import judge

    with told():
        keep = Keep(last, every_epochs, best, metric, mode)
        judged = judge(url, keep)
        removed = {str(item.attempt) for item in collect(url, keep, dry_run=False)} if yes else set()
    word = {True: "removed" if yes else "would go", False: "kept"}
    if as_json:
        rows = [{"name": item.name, "action": word[item.removed], "reason": item.reason} for item in judged]
        print_json({"dry_run": not yes, "checkpoints": rows, "removed": sorted(removed)})
        return
    print_table(
        ("CHECKPOINT", "", "WHY"),
        [(item.name, word[item.removed], item.reason) for item in judged],
    )
    if not yes and any(item.removed for item in judged):
        click.echo("nothing was touched: --yes removes them", err=True)
