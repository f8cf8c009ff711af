"""Reads the shell commands of the documentation as the programs would: by their own parsers, without running any.

What it cannot know (systemctl, docker) is only split into words; a program that is in no list here is an error.
"""

import ast
import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click
from doc_blocks import ROOT

from edl_collective.driver.__main__ import main as driver_main
from jobclient.config import parse as parse_client
from jobclient.options import ConfigError
from jobserver.cli.main import edl
from jobserver.config import parse as parse_server
from jobserver.openapi import ROUTES

#: programs of others, whose arguments are not looked at
FOREIGN = frozenset(
    "cat docker echo install kill kubectl mkdir openssl pip source systemctl tensorboard umask useradd".split()  # noqa: SIM905
)
_VARIABLE = re.compile(r"([A-Z_][A-Z0-9_]*)=")
#: programs that are started by `python -m`, with what reads their arguments
_PROGRAMS: dict[str, Callable[[list[str], Mapping[str, str]], object]] = {
    "jobserver": parse_server,
    "jobclient": parse_client,
    "edl_collective.driver": lambda arguments, _: driver_main([*arguments, "--help"]),
}
_CONTROL = set(";&|()")
_SHELL_WORDS = {"then", "do", "done", "fi", "if", "for", "while", "else", "!"}


class Wrong(ValueError):
    """Raised when a command could not be typed like that."""


def check_shell(text: str, folder: Path = ROOT) -> list[str]:
    """Check every command; returns the variables that are set. folder: where relative paths begin. Raises Wrong."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    if done.returncode:
        raise Wrong(done.stderr.strip())
    variables: list[str] = []
    for words in simple_commands(text):
        folder, found = _check_command(words, folder)
        variables += found
    return variables


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each command, without redirections and comments; those in $(...) after what they are in."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"(^|\s)#\s.*$", "", line), posix=True, punctuation_chars=";&|()<>")
        lexer.whitespace_split, lexer.commenters = True, ""
        words: list[str] = []
        redirected = False
        for word in lexer:
            if set(word) <= _CONTROL:
                yield from _with_inner(words)
                words = []
            elif set(word) <= set("<>"):
                redirected = True
            elif redirected:
                redirected = False
            else:
                words.append(word)
        yield from _with_inner(words)


def _with_inner(words: list[str]) -> Iterator[list[str]]:
    if words:
        yield words
    for word in words:
        for inner in re.findall(r"\$\((.*)\)", word):
            yield from simple_commands(inner)


def _check_command(words: Sequence[str], folder: Path) -> tuple[Path, list[str]]:
    """Where the next one starts, and the variables that this one sets. Raises Wrong."""
    variables = []
    words = [word for word in words if word not in _SHELL_WORDS]
    while words and (found := _VARIABLE.match(words[0])):
        variables.append(found[1])
        words = words[1:]
    if not words:
        return folder, variables
    program, arguments = words[0], words[1:]
    if program == "export":
        return folder, [*variables, *(word.partition("=")[0] for word in arguments)]
    if program == "cd":
        if not (folder / arguments[0]).is_dir():
            raise Wrong(f"there is no folder {arguments[0]}")
        return folder / arguments[0], variables
    _check_program(program, list(arguments), folder)
    _check_paths(words, folder)
    return folder, variables


def _check_program(program: str, arguments: list[str], folder: Path) -> None:
    if program == "edl":
        check_edl(arguments)
    elif program in ("python", "python3"):
        _check_python(arguments, folder)
    elif program == "horovodrun":
        _check_horovodrun(arguments, folder)
    elif program == "curl":
        _check_url(arguments)
    elif "/" in program:
        _check_script(folder / program, arguments)
    elif program not in FOREIGN:
        raise Wrong(f"{program} is not known: add it to FOREIGN in {Path(__file__).name} if it is right")


def check_edl(words: Sequence[str]) -> None:
    """Parse the arguments of `edl` and run nothing. Raises Wrong."""
    command: click.Command = edl
    ctx = click.Context(edl, info_name="edl")
    rest = list(words)
    try:
        while isinstance(command, click.Group):
            if not rest or rest[0] in ("-h", "--help"):
                return
            name, *rest = rest
            found = command.get_command(ctx, name)
            if found is None:
                raise Wrong(f"{ctx.command_path} has no command {name}")
            command = found
            if isinstance(command, click.Group):
                ctx = click.Context(command, info_name=name, parent=ctx)
        with contextlib.redirect_stdout(io.StringIO()):
            command.make_context(name, rest, parent=ctx).close()
    except click.exceptions.Exit:
        return
    except click.ClickException as error:
        raise Wrong(f"edl {shlex.join(words)}: {error.format_message()}") from error


def check_mentioned(words: Sequence[str]) -> None:
    """The same for `edl ...` within a sentence, where arguments may be left out. Raises Wrong."""
    command: click.Command | None = edl
    ctx = click.Context(edl, info_name="edl")
    rest = list(words)
    while isinstance(command, click.Group) and rest and re.fullmatch(r"[a-z]+", rest[0]):
        name, *rest = rest
        command = command.get_command(ctx, name)
        if command is None:
            raise Wrong(f"{ctx.command_path} has no command {name}")
        ctx = click.Context(command, info_name=name, parent=ctx)
    assert command is not None, "the loop ends before that"
    known = {option for parameter in command.get_params(ctx) for option in parameter.opts}
    own = rest[: rest.index("--")] if "--" in rest else rest
    for word in own:
        option = word.partition("=")[0]
        if option.startswith("-") and option not in known and not isinstance(command, click.Group):
            raise Wrong(f"{ctx.command_path} has no option {option}")


def _check_python(arguments: list[str], folder: Path) -> None:
    if arguments[0] == "-c":
        ast.parse(arguments[1])
    elif arguments[0] == "-m":
        _check_module(arguments[1], arguments[2:])
    elif (folder / arguments[0]).is_file():
        _check_script(folder / arguments[0], arguments[1:])
    elif arguments[0] != "train.py":  # the reader's own
        raise Wrong(f"there is no {arguments[0]} in {folder}")


def _check_module(module: str, arguments: list[str]) -> None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            if module in _PROGRAMS:
                _PROGRAMS[module](arguments, {})
            elif module.startswith("bench."):
                _check_script(ROOT / "scripts" / f"{module.replace('.', '/')}.py", arguments)
            else:
                raise Wrong(f"python -m {module} is not known")
    except ConfigError as error:
        raise Wrong(f"python -m {module}: {error}") from error
    except SystemExit as error:
        if error.code:
            raise Wrong(f"python -m {module}: {said.getvalue()}") from error


def _check_horovodrun(arguments: list[str], folder: Path) -> None:
    """What it launches must be there, and the discovery script."""
    if "--host-discovery-script" in arguments:
        _check_script(ROOT / arguments[arguments.index("--host-discovery-script") + 1], [])
    program = arguments.index("python")
    _check_python(arguments[program + 1 :], folder)


def _check_url(arguments: Sequence[str]) -> None:
    """A path of the JobServer must be one of its routes; other servers' are not known."""
    for word in arguments:
        found = re.match(r"https?://[^/]+(/api/[^?#]*)", word)
        if found and not any(_matches(path, found[1]) for method, path in ROUTES if method == "get"):
            raise Wrong(f"{found[1]} is no route")


def _matches(route: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", route), path) is not None


def _check_script(path: Path, arguments: Sequence[str]) -> None:
    """It must be there and run, and each option must be in its text, or in that of what lies beside it."""
    if not path.is_file():
        raise Wrong(f"there is no {path}")
    if path.suffix == ".sh" and not path.stat().st_mode & 0o100:
        raise Wrong(f"{path} cannot be executed")
    options = [word.partition("=")[0] for word in arguments if re.match(r"--\w", word)]
    known = _text_around(path) if options else ""
    for option in options:
        name = re.sub("[-_]", "[-_]", option.lstrip("-"))
        if not re.search(rf"(?<!\w){name}(?!\w)", known):
            raise Wrong(f"{path.name} has no option {option}")


def _text_around(path: Path) -> str:
    """All that may define an option of a script: its neighbours, and the modules that scripts start."""
    near = [*path.resolve().parent.glob("*.*"), *path.parent.glob("*.*"), *ROOT.glob("scripts/bench/**/*.py")]
    more = ("jobserver/config.py", "jobclient/config.py", "distill/arguments.py", "scripts/quickstart.py")
    files = [file for file in {*near, *(ROOT / name for name in more)} if file.suffix in (".py", ".sh")]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def _check_paths(words: Sequence[str], folder: Path) -> None:
    """Files of the repository that are named must be there."""
    for word in words:
        if re.match(r"(deploy|scripts|examples|tests|docs)/[\w./*-]+$", word) and not (
            list(ROOT.glob(word)) or (folder / word).exists()
        ):
            raise Wrong(f"there is no {word}")
