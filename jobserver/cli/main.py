"""The command `edl`: each subcommand is imported when it is used.

So `edl ps` loads no torch and no web framework, and `edl ckpt` no web framework (tests/unit/test_cli.py).
"""

import os
import sys

import click

from edl_collective.shadowing import ShadowedError, check_not_shadowed, find_shadowing
from jobserver.cli.lazy import LazyGroup

#: command -> (module, its short help, so that `edl --help` imports nothing)
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("jobserver.cli.up", "Start ZooKeeper, a JobServer and nodes on this machine, in the foreground."),
    "submit": ("jobserver.cli.jobs", "Submit a job."),
    "ps": ("jobserver.cli.jobs", "List the jobs."),
    "top": ("jobserver.cli.top", "Show how the jobs get on, refreshed until Ctrl-C."),
    "describe": ("jobserver.cli.jobs", "Show everything about a job."),
    "scale": ("jobserver.cli.jobs", "Change how many workers a job has."),
    "set": ("jobserver.cli.changes", "Change a job that waits or runs: size, bounds, priority, spares."),
    "stop": ("jobserver.cli.jobs", "Stop a job."),
    "cancel": ("jobserver.cli.changes", "Stop a job and wait until it has ended."),
    "retry": ("jobserver.cli.changes", "Submit a job that failed or was stopped again, under its name."),
    "delete": ("jobserver.cli.jobs", "Forget a job that has ended."),
    "events": ("jobserver.cli.events", "Show what happened to a job, and why."),
    "ui": ("jobserver.cli.ui", "Print or open the address of the page that shows the cluster live."),
    "logs": ("jobserver.cli.logs", "Show the log of a worker."),
    "nodes": ("jobserver.cli.nodes", "List the nodes and their workers."),
    "drain": ("jobserver.cli.nodes", "Let all workers leave a node at a step boundary."),
    "undrain": ("jobserver.cli.nodes", "Let a drained node take workers again."),
    "cordon": ("jobserver.cli.nodes", "Let a node take no new workers; those that it has go on there."),
    "uncordon": ("jobserver.cli.nodes", "Let a cordoned node take workers again."),
    "token": ("jobserver.cli.tokens", "Print a token for those who are not to have the cluster key."),
    "certificate": ("jobserver.cli.tokens", "Print the certificate authority of the cluster."),
    "teacher": ("jobserver.cli.teacher", "Serve models to students, and watch teachers."),
    "drill": ("jobserver.cli.drill", "Break things on a private cluster, and see that training goes on."),
    "completion": ("jobserver.cli.completion", "Print the script that completes edl in a shell."),
    "ckpt": ("jobserver.cli.ckpt", "Look after checkpoints: list, verify, pin, collect, copy, export."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def edl() -> None:
    """Elastic PyTorch training: jobs that keep training while workers and nodes come and go."""


def main() -> None:
    """Entry point of the console script."""
    try:
        check_not_shadowed()
    except ShadowedError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    for name, file in find_shadowing([os.getcwd()]):  # a script that is started here would import it
        click.echo(f"Warning: {file} hides EDL's package {name!r} from scripts in this folder: rename it", err=True)
    edl()


if __name__ == "__main__":
    main()
