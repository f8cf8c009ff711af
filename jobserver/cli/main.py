"""The command `edl`: each subcommand is imported when it is used.

So `edl ps` loads no torch and no web framework, and `edl ckpt` no web framework (tests/unit/test_cli.py).
"""

import importlib
import os
import sys

import click

from edl_collective.shadowing import ShadowedError, check_not_shadowed, find_shadowing

#: command -> (module, its short help, so that `edl --help` imports nothing)
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up", "Start ZooKeeper, a JobServer and nodes on this machine, in the foreground."),
    "submit": ("jobs", "Submit a job."),
    "ps": ("jobs", "List the jobs."),
    "describe": ("jobs", "Show everything about a job."),
    "scale": ("jobs", "Change how many workers a job has."),
    "stop": ("jobs", "Stop a job."),
    "delete": ("jobs", "Forget a job that has ended."),
    "events": ("jobs", "Show what happened to a job, and why."),
    "logs": ("logs", "Show the log of a worker."),
    "nodes": ("nodes", "List the nodes and their workers."),
    "drain": ("nodes", "Let all workers leave a node at a step boundary."),
    "undrain": ("nodes", "Let a drained node take workers again."),
    "drill": ("drill", "Break things on a private cluster, and see that training goes on."),
    "ckpt": ("ckpt", "Look at checkpoints."),
}


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click calls it so
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"jobserver.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
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
