"""The reference of commands, from the parsers themselves: each command of `edl`, and what programs say to --help."""

import contextlib
import inspect
import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from docsite.markup import cell, code, fence, table
from edl_collective.driver.__main__ import main as driver_main
from jobclient.config import parse as parse_client
from jobserver.cli.main import edl
from jobserver.config import parse as parse_server

ROOT = Path(__file__).resolve().parents[2]
#: what is shown of `python -m MODULE`
PROGRAMS: dict[str, Callable[[], object]] = {
    "jobserver": lambda: parse_server(["--help"], {}),
    "jobclient": lambda: parse_client(["--help"], {}),
    "edl_collective.driver": lambda: driver_main(["--help"]),
}
#: scripts that people run -> the command that explains it without the set-up that the script itself looks for
SCRIPTS: dict[str, list[str]] = {
    "scripts/setup.sh": ["bash", "scripts/setup.sh"],
    "scripts/quickstart.sh": [sys.executable, "scripts/quickstart.py"],
    "scripts/start_job_server.sh": [sys.executable, "-m", "jobserver.start"],
    "scripts/qps.sh": [sys.executable, "scripts/qps.py"],
    "scripts/bench.sh resize": [sys.executable, "-m", "bench", "resize"],
    "scripts/docs.sh": ["bash", "scripts/docs.sh"],
}


def commands() -> Iterator[tuple[click.Command, click.Context]]:
    """Every command of `edl`, groups before what is in them."""
    yield from _below(edl, click.Context(edl, info_name="edl"))


def _below(command: click.Command, ctx: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    yield command, ctx
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child is not None, f"{name} is listed"
            prefix = child.context_settings.get("auto_envvar_prefix")
            below = click.Context(child, info_name=name, parent=ctx, auto_envvar_prefix=prefix)
            yield from _below(child, below)


def edl_reference() -> str:
    """A section for each command."""
    return "\n\n".join(_section(command, ctx) for command, ctx in commands())


def _section(command: click.Command, ctx: click.Context) -> str:
    usage = f"{ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}"
    parts = [f"## {ctx.command_path}", _prose(command.help or ""), fence("text", usage)]
    rows = [row for parameter in command.get_params(ctx) if (row := _row(parameter, ctx)) is not None]
    if rows:
        parts.append(table(["option", "", "environment"], rows))
    if isinstance(command, click.Group):
        names = (f"[{name}](#{ctx.command_path.replace(' ', '-')}-{name})" for name in command.list_commands(ctx))
        parts.append("Commands: " + ", ".join(names))
    return "\n\n".join([*parts, _prose(command.epilog or "")])


def _row(parameter: click.Parameter, ctx: click.Context) -> tuple[str, str, str] | None:
    record = parameter.get_help_record(ctx)
    if isinstance(parameter, click.Argument) or record is None:
        return None if record is None or not record[1] else (code(record[0]), cell(record[1]), "")
    variable = parameter.envvar
    if variable is None and ctx.auto_envvar_prefix and parameter.name and parameter.name != "help":
        variable = f"{ctx.auto_envvar_prefix}_{parameter.name.upper()}"
    return code(record[0]), cell(record[1]), code(str(variable)) if variable else ""


def _prose(text: str) -> str:
    """click's help as Markdown: what stands behind a \\b is printed as it is."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        verbatim = paragraph.startswith("\b")
        parts.append(fence("text", paragraph.removeprefix("\b").strip("\n")) if verbatim else cell(paragraph))
    return "\n\n".join(parts)


def program_reference() -> str:
    """What `python -m MODULE --help` prints."""
    return "\n\n".join(f"## python -m {name}\n\n{fence('text', _said(program))}" for name, program in PROGRAMS.items())


def _said(program: Callable[[], object]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        program()
    return said.getvalue()


def script_reference() -> str:
    """What scripts print when they are asked for --help. Raises CalledProcessError."""
    parts = []
    for name, command in SCRIPTS.items():
        done = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
        parts.append(f"## {name}\n\n{fence('text', done.stdout)}")
    return "\n\n".join(parts)
