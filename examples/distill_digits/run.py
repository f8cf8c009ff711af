"""Distil scikit-learn's digits in three ways and compare: no teacher, one in the trainer, one that is a service.

The whole story in one command: it trains the teacher, serves it, trains the students and prints a table.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import nets
from digits import split
from distill.arguments import DistillArguments, add_arguments, from_arguments, read_losses
from distill.errors import ConfigError, DistillError
from distill.losses import LossError
from distill.teacher.local import LocalTeachers
from students import IN_PROCESS, MODES, SERVICE, Outcome, Setting, train_student
from summary import differences, mean_of
from train_teacher import EPOCHS, SERVE_OPTIONS, accuracy, train_teacher

FOLDER = Path(__file__).resolve().parent

EPILOG = """\
examples:
  run.sh                                        # all of it: 5 students in each of 3 modes
  run.sh --seeds 2 --epochs 10 --json out.json  # a quick look, kept as JSON
  run.sh --wrong_labels 0 --images 200          # few images instead of wrong labels
  run.sh --losses mine.toml                     # other losses: see losses.toml

teachers elsewhere: train one, serve it where you like, and name it here
  python train_teacher.py /tmp/teacher.pt       # says the command that serves it
  run.sh --use_distill_service True --distill_teachers 10.0.0.5:8500,10.0.0.6:8500
  run.sh --use_distill_service True --distill_service digits --zookeeper zk:2181
"""


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help explains the options)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="run.sh", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="students of each mode (%(default)s)")
    parser.add_argument("--modes", default=",".join(MODES), metavar="M,M", help="which of them (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    setting = parser.add_argument_group("what a student learns from")
    helps = {
        "images": "images that it has",
        "wrong_labels": "share of them whose label is a guess",
        "width": "of its hidden layer",
        "epochs": "over its images",
        "batch_size": "images of a step",
        "lr": "highest learning rate",
        "workers": "DataLoader processes",
    }
    for field in fields(Setting):
        setting.add_argument(
            f"--{field.name}",
            type=type(field.default),
            default=field.default,
            help=f"{helps[field.name]} (%(default)s)",
        )
    teachers = parser.add_argument_group("the teacher")
    teachers.add_argument("--teachers", type=int, default=2, metavar="N", help="servers that are started (%(default)s)")
    teachers.add_argument("--teacher_epochs", type=int, default=EPOCHS, metavar="N", help="(%(default)s)")
    teachers.add_argument(
        "--teacher_checkpoint", type=Path, metavar="FILE", help="of train_teacher.py; else one is trained"
    )
    add_arguments(teachers)
    parser.set_defaults(use_distill_service=True, losses=FOLDER / "losses.toml")
    return parser


def _problem(args: argparse.Namespace, modes: Sequence[str]) -> str | None:
    """What is wrong with the arguments, in one sentence."""
    for name in ("seeds", "images", "width", "epochs", "batch_size", "teachers", "teacher_epochs"):
        if getattr(args, name) < 1:
            return f"--{name} must be at least 1, not {getattr(args, name)}"
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        return f"--modes {args.modes!r} must be some of {','.join(MODES)}"
    if args.images > 1000:
        return f"--images {args.images} is more than the 1000 that there are to train on"
    if not 0 <= args.wrong_labels <= 1:
        return f"--wrong_labels must be between 0 and 1, not {args.wrong_labels:g}"
    if args.workers < 0 or args.lr <= 0:
        return "--workers must not be negative, and --lr must be positive"
    return None


class Comparison:
    """One run, from the teacher to the table."""

    def __init__(self, args: argparse.Namespace, modes: Sequence[str], distill: DistillArguments, say: Console) -> None:
        self.args, self.modes, self.distill = args, modes, distill
        self.setting = Setting(**{field.name: getattr(args, field.name) for field in fields(Setting)})
        self.losses = read_losses(args.losses)
        self.data = split()
        self.outcomes: list[Outcome] = []
        self.teacher_accuracy: float | None = None
        self._console = say
        self._began_s = time.monotonic()

    def say(self, text: str) -> None:
        self._console.print(f"[{time.monotonic() - self._began_s:6.1f} s] {text}", highlight=False, markup=False)

    def run(self, stack: ExitStack) -> None:
        """Everything but the table; servers end with `stack`. Raises DistillError."""
        # One thread each: teachers and students share the cores, and small networks gain nothing from more.
        torch.set_num_threads(1)
        teacher, reader_options = self._teachers(stack)
        for seed in range(self.args.seeds):
            for mode in self.modes:
                outcome = train_student(
                    mode, seed, self.setting, self.data, self.losses, teacher=teacher, reader_options=reader_options
                )
                self.outcomes.append(outcome)
                self.say(_line(outcome))

    def _teachers(self, stack: ExitStack) -> tuple[nn.Module | None, dict[str, Any]]:
        """The teacher itself, for mode in-process, and how a DistillReader finds the servers."""
        served_here = SERVICE in self.modes and not self.distill.named
        if IN_PROCESS not in self.modes and not served_here:
            return None, self.distill.reader_options()
        teacher = self._teacher()
        if not served_here:
            return teacher, self.distill.reader_options()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edl-digits-")))
        torch.save(teacher.state_dict(), folder / "teacher.pt")
        options = [*SERVE_OPTIONS, "--checkpoint", str(folder / "teacher.pt")]
        servers = stack.enter_context(LocalTeachers(*options, count=self.args.teachers, folder=FOLDER))
        self.say(f"teacher servers at {servers.addresses}")
        return teacher, {**self.distill.reader_options(), "teachers": servers.addresses}

    def _teacher(self) -> nn.Module:
        path = self.args.teacher_checkpoint
        if path is None:
            self.say(f"the teacher learns {len(self.data[0].labels)} images")
            teacher = train_teacher(self.data[0], epochs=self.args.teacher_epochs)
        else:
            teacher = nets.teacher()
            teacher.load_state_dict(torch.load(path, weights_only=True))
            teacher.eval()
        self.teacher_accuracy = accuracy(teacher, self.data[1])
        self.say(f"teacher: test accuracy {self.teacher_accuracy:.1%}")
        return teacher

    # ---- the end --------------------------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """All figures, as JSON has them."""
        found = {mode: [o for o in self.outcomes if o.mode == mode] for mode in self.modes}
        table = {
            mode: {
                "accuracy": mean_of([o.accuracy for o in of_mode])._asdict(),
                "images_per_s": mean_of([o.images_per_s for o in of_mode]).mean,
                "waited_ms": mean_of([o.waited_ms for o in of_mode]).mean,
            }
            for mode, of_mode in found.items()
        }
        accuracies = {mode: [o.accuracy for o in of_mode] for mode, of_mode in found.items()}
        return {
            "setting": asdict(self.setting),
            "losses": self.losses,
            "teacher_accuracy": self.teacher_accuracy,
            "students": [o.as_json() for o in self.outcomes],
            "modes": table,
            "differences": {name: mean._asdict() for name, mean in differences(accuracies).items()},
            "seconds": round(time.monotonic() - self._began_s, 1),
        }

    def print_table(self) -> None:
        table = Table(box=None, header_style="bold")
        for name in ("students", "test accuracy (%)", "images/s", "waited (ms a step)"):
            table.add_column(name, justify="left" if name == "students" else "right")
        accuracies: dict[str, list[float]] = {}
        for mode in self.modes:
            found = [o for o in self.outcomes if o.mode == mode]
            accuracies[mode] = [o.accuracy for o in found]
            speed, waited = mean_of([o.images_per_s for o in found]).mean, mean_of([o.waited_ms for o in found]).mean
            table.add_row(
                mode,
                mean_of(accuracies[mode]).as_percent(),
                f"{speed:,.0f}",
                f"{waited:.2f}" if mode == SERVICE else "-",
            )
        for name, mean in differences(accuracies).items():
            table.add_row(name, mean.as_percent("+"), "", "")
        self._console.print(table)
        note = f"means of {self.args.seeds} students and their 95 % intervals" if self.args.seeds > 1 else "one student"
        self._console.print(f"{note}; differences are taken seed by seed", style="dim", highlight=False)


def _line(outcome: Outcome) -> str:
    losses = "  ".join(f"{name} {value:.3f}" for name, value in outcome.losses.items())
    return f"seed {outcome.seed}  {outcome.mode:<10}  accuracy {outcome.accuracy:.1%}  losses: {losses}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; exit code 2 with one line for what cannot be, 1 when teachers fail, 130 on Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        distill = from_arguments(args, os.environ)
    except ConfigError as error:
        parser.error(str(error))
    modes = [mode for mode in args.modes.split(",") if mode and (mode != SERVICE or distill.use)]
    if distill.named and args.teacher_checkpoint is None and IN_PROCESS in modes:
        modes.remove(IN_PROCESS)  # the teacher that is served elsewhere is not at hand
    problem = _problem(args, modes)
    if problem:
        parser.error(problem)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(soft_wrap=True)
    return _guarded(parser.prog, lambda: _compare(args, modes, distill, console))


def _compare(args: argparse.Namespace, modes: Sequence[str], distill: DistillArguments, console: Console) -> None:
    comparison = Comparison(args, modes, distill, console)
    with ExitStack() as stack:
        comparison.run(stack)
    if args.json is not None:
        args.json.write_text(json.dumps(comparison.result(), indent=1) + "\n", encoding="utf-8")
    comparison.print_table()


def _guarded(program: str, work: Callable[[], None]) -> int:
    errors: Mapping[type[Exception], int] = {LossError: 2, ConfigError: 2, OSError: 2, DistillError: 1}
    try:
        work()
    except tuple(errors) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return next(code for kind, code in errors.items() if isinstance(error, kind))
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
