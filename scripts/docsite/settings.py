"""The reference of options that are also variables and lines of a TOML file, from the tables that programs read."""

from collections.abc import Iterator, Mapping

import click

from distill.teacher.command import serve
from docsite.markup import cell, code, table
from jobclient.config import OPTIONS as CLIENT_OPTIONS
from jobserver.config import OPTIONS as SERVER_OPTIONS

_HEAD = ("in a file", "environment", "value", "")


def server_options() -> str:
    """Of `python -m jobserver`."""
    return table(_HEAD, _rows(SERVER_OPTIONS))


def client_options() -> str:
    """Of `python -m jobclient`."""
    return table(_HEAD, _rows(CLIENT_OPTIONS))


def _rows(options: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    for name, (value, text) in options.items():
        yield code(name), code(f"EDL_{name.upper()}"), code(value), cell(text)


def teacher_variables() -> dict[str, str]:
    """Variable -> option of `edl teacher serve`."""
    return {_variable(parameter): max(parameter.opts, key=len) for parameter in serve.params}


def _variable(parameter: click.Parameter) -> str:
    given = parameter.envvar
    return str(given) if given is not None else f"EDL_TEACHER_{str(parameter.name).upper()}"


def teacher_options() -> str:
    """Of `edl teacher serve`."""
    rows = ((code(variable), code(option)) for variable, option in teacher_variables().items())
    return table(("environment", "option"), rows)
