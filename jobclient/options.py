"""The options of a program that is configured by a file, the environment and the command line.

Invariant: the command line wins over the environment, which wins over the file; whatever cannot work is a ConfigError,
one sentence that names the option. A value is kept as it was given until somebody asks for a number. Shared by the
JobClient and the JobServer; which options there are is theirs to say.
"""

import argparse
import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

from edl_collective.coord.access import ACL_MODES, is_loopback, off_loopback

R = TypeVar("R")
#: by name in Python: what stands for the value in the help, and the help
Options = Mapping[str, tuple[str, str]]
Values = Mapping[str, object]


class ConfigError(ValueError):
    """Raised when an option has a value that cannot work."""


# ---- where values come from ---------------------------------------------------------------------------------------


def option_parser(prog: str, description: str, epilog: str, options: Options) -> argparse.ArgumentParser:
    """A parser of `options` and --config; what was not given is None."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of the options below (also EDL_CONFIG)")
    for name, (metavar, text) in options.items():
        parser.add_argument(_option(name), dest=name, metavar=metavar, help=text)
    return parser


def with_dashes(argument: str) -> str:
    """--log_dir is --log-dir."""
    name, equals, value = argument.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name) + equals + value


def merged(
    names: Collection[str],
    command_line: Values,
    environ: Mapping[str, str],
    aliases: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """What was given of the options `names`, each from the strongest source that has it.

    aliases: variables of the environment that stand for an option where its own is not set. Raises ConfigError.
    """
    path = command_line["config"] or environ.get("EDL_CONFIG")
    values = {} if path is None else _from_file(str(path), names)
    values |= {name: environ[variable] for variable, name in (aliases or {}).items() if environ.get(variable)}
    values |= {name: environ[f"EDL_{name.upper()}"] for name in names if environ.get(f"EDL_{name.upper()}")}
    return values | {name: value for name, value in command_line.items() if value is not None and name != "config"}


def _from_file(path: str, names: Collection[str]) -> dict[str, object]:
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {path} cannot be read: {error}") from error
    values = {name.replace("-", "_"): value for name, value in values.items()}
    unknown = [name for name in values if name not in names]
    if unknown:
        raise ConfigError(f"--config {path} sets {unknown[0]!r}, which is not an option; see --help")
    return values


# ---- what they must be --------------------------------------------------------------------------------------------


def number(values: Values, name: str, default: float) -> float:
    value = values.get(name, default)
    try:
        return float(str(value))
    except ValueError:
        raise ConfigError(f"{_option(name)} is {value!r}: it must be a number") from None


def integer(values: Values, name: str, default: int) -> int:
    return as_integer(name, values.get(name, default))


def as_integer(name: str, value: object) -> int:
    """`value` of the option `name`, or one of its values."""
    try:
        return int(str(value))
    except ValueError:
        raise ConfigError(f"{_option(name)} is {value!r}: it must be a whole number") from None


def checked(option: str, make: Callable[..., R], *args: object, **fields: object) -> R:
    """make(...), its ValueError as a ConfigError that names `option`."""
    try:
        return make(*args, **fields)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


def check_positive(config: object, names: Collection[str]) -> None:
    """The fields `names` of `config`, each named as its option is but for the unit."""
    for name in names:
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise ConfigError(f"{_option(name.removesuffix('_s'))} is {value:g}: it must be positive")


def check_port(option: str, port: int) -> None:
    if not 0 <= port <= 65535:
        raise ConfigError(f"{option} is {port}: it must be between 0 (any free port) and 65535")


def check_hosts(zookeeper: str) -> None:
    if not re.fullmatch(r"[^\s,:]+:\d+(,[^\s,:]+:\d+)*", zookeeper):
        raise ConfigError(f"--zookeeper is {zookeeper!r}: give host:port, several separated by commas")


def closed_tree(values: Values, address: str) -> bool:
    """Whether --zookeeper-acl asks for a tree that is closed. Raises ConfigError."""
    mode = str(values.get("zookeeper_acl", ""))
    if mode and mode not in ACL_MODES:
        raise ConfigError(f"--zookeeper-acl is {mode!r}: it must be {' or '.join(ACL_MODES)}")
    zookeeper = str(values.get("zookeeper", "127.0.0.1:2181"))
    return mode == "key" or (not mode and off_loopback(zookeeper, address))


def with_tls(values: Values, address: str) -> bool:
    """Whether a port at `address` speaks TLS. Raises ConfigError."""
    mode = str(values.get("tls", "off" if is_loopback(address) else "on"))
    if mode not in ("on", "off"):
        raise ConfigError(f"--tls is {mode!r}: it must be on or off")
    return mode == "on"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
