"""edl ckpt verify, cp, export: those that move data, with a progress bar on standard error if that is a terminal."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from jobserver.cli.ckpt_look import checkpoint_argument, json_option, print_rows, row_of, told, which
from jobserver.cli.client import BadInput, CommandFailed, print_json

#: Bytes done since the last call, and bytes in all (0: not known yet).
Tell = Callable[[int, int], None]


@contextmanager
def progress_bar(what: str) -> Iterator[Tell]:
    """Shows bytes, MB/s and the time left; takes calls from several threads."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        lock = threading.Lock()

        def tell(done: int, whole: int) -> None:
            with lock:
                bar.update(task, advance=done, total=whole or None)

        yield tell


@click.command()
@click.argument("url")
@checkpoint_argument()
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="files read at a time")
@json_option
def verify(url: str, checkpoint: str | None, jobs: int, as_json: bool) -> None:
    """Read every byte and compare it with its checksum: all checkpoints at URL, or only CHECKPOINT.

    The exit code is 1 if one is damaged; an unfinished save is not (unless it is the one that was asked for).

    \b
    edl ckpt verify hdfs://nn:8020/run
    edl ckpt verify s3://bucket/run 7 --jobs 8 --json
    """
    from checkpoints.checking import verify_folder

    with told(), progress_bar("verifying") as tell:
        found = verify_folder(url, which(checkpoint), jobs=jobs, progress=tell)
    if as_json:
        print_json({"checkpoints": [row_of(info) for info in found]})
    elif found:
        print_rows(found)
    else:
        click.echo(f"there are no checkpoints at {url}", err=True)
    fine = ("valid",) if checkpoint is not None else ("valid", "unfinished", "unknown")
    bad = [info for info in found if info.condition.value not in fine]
    if bad:
        raise CommandFailed(f"{len(bad)} of {len(found)} cannot be used; the newest: {bad[0].name}: {bad[0].problem}")


@click.command()
@click.argument("source")
@click.argument("target")
@checkpoint_argument()
@click.option("--restart", is_flag=True, help="remove what an interrupted copy left, and begin again")
@json_option
def cp(source: str, target: str, checkpoint: str | None, restart: bool, as_json: bool) -> None:
    """Copy a checkpoint from the folder SOURCE to the folder TARGET, under its own name.

    Without CHECKPOINT the newest valid one. Files are streamed, compared with their checksums on the way and again when
    they are read back from TARGET; the manifest goes last, so a copy that stops half-way is not a checkpoint. One that
    is there already is left alone.

    \b
    edl ckpt cp hdfs://nn:8020/run s3://bucket/run
    edl ckpt cp /data/run 'hdfs://nn1:8020,nn2:8020/archive?replication=2' 7
    """
    from checkpoints.drivers import opened
    from checkpoints.transfer import choose, copy_checkpoint

    if source.rstrip("/") == target.rstrip("/"):
        raise BadInput(f"{source} and {target} are the same folder")
    with told():
        wanted = which(checkpoint)
        with opened(source) as folder:
            examined = choose(folder, wanted)
        whole = 2 * sum(shard.size_bytes for shard in examined.manifest.shards) if examined.manifest else 0
        with progress_bar(f"copying {examined.attempt}") as tell:
            copied = copy_checkpoint(
                source, target, str(examined.attempt), restart=restart, progress=lambda done: tell(done, whole)
            )
    if as_json:
        print_json(row_of(copied) | {"url": target})
        return
    click.echo(f"copied {copied.name} ({copied.size_bytes} bytes) to {target}")


@click.command()
@click.argument("url")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@checkpoint_argument()
@click.option("--state", default="model", show_default=True, help="under which name the state was saved")
@click.option("--force", is_flag=True, help="replace FILE")
@json_option
def export(url: str, file: Path, checkpoint: str | None, state: str, force: bool, as_json: bool) -> None:
    """Write the tensors of a saved state to FILE, for whatever reads safetensors.

    Without CHECKPOINT the newest valid one. Tied weights are written under each of their names.

    \b
    edl ckpt export hdfs://nn:8020/run model.safetensors
    edl ckpt export /data/run ema.safetensors 7 --state ema
    python -c "from safetensors.torch import load_file; model.load_state_dict(load_file('model.safetensors'))"
    """
    from checkpoints.export import export_weights

    with told(), progress_bar("exporting") as tell:
        done = export_weights(
            url, file, state=state, checkpoint=which(checkpoint), overwrite=force, progress=lambda count: tell(count, 0)
        )
    if as_json:
        print_json(vars(done))
        return
    click.echo(f"wrote {done.tensors} tensors of {done.checkpoint} to {done.path} ({done.size_bytes} bytes)")
    if done.left_out:
        click.echo(f"left out, because they are no tensors: {', '.join(done.left_out)}", err=True)
