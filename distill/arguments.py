"""The command line of a script that trains a student, for argparse: which teachers it asks, and what it learns from.

    add_arguments(parser.add_argument_group("service distillation"))
    distill = from_arguments(parser.parse_args(), os.environ)
    reader = DistillReader(loader, ins=["image"], predicts=["output"], **distill.reader_options())

The names of the first three are those that Paddle EDL's scripts have. Imports no torch.
"""

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import ConfigError
from distill.reader_options import BLOCK, CONFIG, HARD_LABELS, PREFIX
from distill.source import parse_teachers

#: the arguments, by their names in a Namespace
NAMES = ("use_distill_service", "distill_teachers", "distill_service", "zookeeper", "on_no_teacher", "losses")
#: what names teachers from outside of a script: see distill.reader_options
_FROM_OUTSIDE = (CONFIG, f"{PREFIX}TEACHERS", f"{PREFIX}SERVICE", f"{PREFIX}NOP")
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class DistillArguments:
    """The checked arguments; `named` says whether anybody named teachers, `use` whether to ask any."""

    use: bool
    named: bool
    teachers: str | None = None
    service: str | None = None
    #: hosts of the ensemble in which the service is listed, and EDL's root there
    zookeeper: str = "127.0.0.1:2181"
    root: str = "/edl"
    on_no_teacher: str = BLOCK
    #: a TOML file with a list `losses`
    losses: Path | None = None

    def reader_options(self) -> dict[str, Any]:
        """For DistillReader(**options)."""
        options: dict[str, Any] = {"on_no_teacher": self.on_no_teacher}
        if self.teachers is not None:
            options["teachers"] = self.teachers
        if self.service is not None:
            options |= {"service": self.service, "zookeeper": self.zookeeper, "root": self.root}
        return options


def add_arguments(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """--use_distill_service, --distill_teachers, --distill_service and what belongs to them."""
    add = parser.add_argument
    add(
        "--use_distill_service",
        type=_truth,
        metavar="True|False",
        help="learn from teachers that run elsewhere (default: if any are named)",
    )
    add("--distill_teachers", metavar="IP:PORT,...", help="ask these; https://IP:PORT for TLS")
    add(
        "--distill_service",
        metavar="NAME",
        help="or those that ZooKeeper lists for a service, as they come and go",
    )
    add("--zookeeper", metavar="HOSTS", help="where they are listed (default: EDL_ZOOKEEPER, then 127.0.0.1:2181)")
    add(
        "--on_no_teacher",
        choices=(BLOCK, HARD_LABELS),
        default=BLOCK,
        help="when all are gone: wait, or go on with the labels alone (default: %(default)s)",
    )
    add("--losses", type=Path, metavar="FILE", help="what to learn from: losses = [{type, weight, temperature}, ...]")


def from_arguments(args: argparse.Namespace, environ: Mapping[str, str]) -> DistillArguments:
    """The checked arguments. Raises ConfigError in one sentence."""
    teachers, service = args.distill_teachers, args.distill_service
    if teachers is not None and service is not None:
        raise ConfigError("--distill_teachers and --distill_service both name teachers: give one of them")
    if teachers is not None:
        parse_teachers(teachers)
    named = teachers is not None or service is not None or any(environ.get(name) for name in _FROM_OUTSIDE)
    use = named if args.use_distill_service is None else args.use_distill_service
    return DistillArguments(
        use,
        named,
        teachers,
        service,
        args.zookeeper or environ.get("EDL_ZOOKEEPER") or "127.0.0.1:2181",
        environ.get("EDL_ZOOKEEPER_ROOT") or "/edl",
        args.on_no_teacher,
        args.losses,
    )


def read_losses(path: Path) -> Sequence[Mapping[str, Any]]:
    """The entries of a file's list `losses`, for distill.objective.objective. Raises ConfigError, OSError."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("losses")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f'{path} must hold a list such as losses = [{{type = "kd", weight = 1, temperature = 4}}]')
    return entries


def _truth(text: str) -> bool:
    try:
        return _TRUTH[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"must be True or False, not {text!r}") from None
