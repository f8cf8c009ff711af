"""What the training script can be told: the command line first, then the environment, then the links of a pod.

Everything is checked here, before an image is read; a wrong argument is one line on stderr and exit code 2. Nothing
here imports torch, so --help answers at once.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from distill.arguments import DistillArguments, add_arguments, from_arguments
from distill.errors import ConfigError

DATA_VARIABLES = ("EDL_IMAGENET_PATH", "PADDLE_EDL_IMAGENET_PATH")
CHECKPOINT_VARIABLES = ("EDL_CHECKPOINT_PATH", "PADDLE_EDL_FLEET_CHECKPOINT_PATH")
#: The links that package.sh makes in a pod's directory.
DATA_LINK = "ImageNet"
CHECKPOINT_LINK = "fleet_checkpoints"

MODEL_NAMES = ("resnet50", "resnet50_vd", "tiny")
AUGMENTATION_NAMES = ("crop_flip", "shift_rotate", "none")
PRECISIONS = ("fp32", "bf16-autocast", "fp16")

DESCRIPTION = """\
Train ResNet-50 on a folder of JPEG images: DATA/train/<class>/*.jpg and DATA/val/<class>/*.jpg.

The same command runs alone, under horovodrun and under EDL JobClients, which add and remove workers while it trains.
Every epoch ends with an evaluation on val (acc1, acc5) and a checkpoint; started again, it goes on after the newest.
"""

EXAMPLES = """\
examples:
  python make_digits.py /tmp/digits                                    # 1,797 real images, a few seconds
  python train.py --data /tmp/digits --model tiny --image_size 32 --augmentation shift_rotate --epochs 3
  python train.py --data /data/ImageNet --checkpoint hdfs://namenode:8020/runs/a \\
      --total_batch_size 1024 --lr 0.4 --lr_schedule cosine --warmup_epochs 5 --epochs 90 --label_smoothing 0.1

  python train.py --data /data/ImageNet --model resnet50_vd --use_distill_service True \\
      --distill_teachers 10.0.0.5:8500,10.0.0.6:8500                   # or --distill_service NAME

environment, where the command line says nothing:
  EDL_IMAGENET_PATH, PADDLE_EDL_IMAGENET_PATH                  --data
  EDL_CHECKPOINT_PATH, PADDLE_EDL_FLEET_CHECKPOINT_PATH        --checkpoint
"""


@dataclass(frozen=True)
class Options:
    """The checked arguments of one training run; what each means is in --help, and the names are the same."""

    data: Path
    #: A URL; None trains without checkpoints.
    checkpoint: str | None
    model: str
    small_images: bool
    image_size: int
    augmentation: str
    workers: int
    epochs: int
    batch_policy: str
    total_batch_size: int
    worker_batch_size: int
    lr: float
    lr_schedule: str
    warmup_epochs: float
    #: Rising, each between 0 and `epochs`.
    decay_epochs: tuple[float, ...]
    momentum: float
    weight_decay: float
    label_smoothing: float
    precision: str
    evaluate_every: int
    seed: int
    #: which teachers are asked, if any
    distill: DistillArguments


def parse_options(argv: Sequence[str], environ: Mapping[str, str], folder: Path) -> Options:
    """The options of a run from its arguments, the environment and `folder`, where package.sh's links may be.

    Exits with code 2 and one line on stderr when an argument is wrong or no data set is named, with 0 after --help.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.lr is None:
        args.lr = _default_lr(args)
    args.decay_epochs = tuple(args.decay_epochs or (args.epochs / 3, args.epochs * 2 / 3, args.epochs * 8 / 9))
    data = args.data or _first(environ, DATA_VARIABLES) or _link(folder, DATA_LINK)
    checkpoint = args.checkpoint or _first(environ, CHECKPOINT_VARIABLES) or _link(folder, CHECKPOINT_LINK)
    try:
        distill = from_arguments(args, environ)
    except ConfigError as error:
        parser.error(str(error))
    problem = _problem(args) or _distill_problem(args, distill)
    if problem:
        parser.error(problem)
    if data is None:
        parser.error(f"no images: give --data FOLDER, or set {DATA_VARIABLES[0]}")
    found = {"data": Path(data), "checkpoint": _as_url(checkpoint, folder), "distill": distill}
    names = {field.name for field in fields(Options)}
    return Options(**{name: value for name, value in (vars(args) | found).items() if name in names})


def _default_lr(args: argparse.Namespace) -> float:
    """0.1 for a batch of 256 and in proportion to it (Goyal et al., arXiv 1706.02677)."""
    batch: int = args.total_batch_size if args.batch_policy == "total" else args.worker_batch_size
    return 0.1 * batch / 256


def _problem(args: argparse.Namespace) -> str | None:
    """What is wrong with the arguments taken together, in one sentence."""
    if args.warmup_epochs >= args.epochs:
        return f"--warmup_epochs {args.warmup_epochs:g} must be less than --epochs {args.epochs}"
    edges = (0.0, *args.decay_epochs, float(args.epochs))
    if any(low >= high for low, high in pairwise(edges)):
        shown = " ".join(f"{epoch:g}" for epoch in args.decay_epochs)
        return f"--decay_epochs {shown} must rise and lie between 0 and --epochs {args.epochs}"
    return None


def _distill_problem(args: argparse.Namespace, distill: DistillArguments) -> str | None:
    """What is wrong with the arguments about teachers, in one sentence."""
    if distill.use and not distill.named:
        return "--use_distill_service True needs --distill_teachers IP:PORT,... or --distill_service NAME"
    if distill.losses is not None and not distill.losses.is_file():
        return f"--losses {distill.losses} is not a file"
    if distill.use and args.label_smoothing:
        return "--label_smoothing goes into the file of --losses: {type = hard, label_smoothing = ...}"
    return None


def _first(environ: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)


def _link(folder: Path, name: str) -> str | None:
    path = folder / name
    return str(path) if path.exists() else None


def _as_url(checkpoint: str | None, folder: Path) -> str | None:
    if checkpoint is None or "://" in checkpoint:
        return checkpoint
    return f"file://{(folder / checkpoint).resolve()}"


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage of twenty options would hide it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help explains the options)\n")


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = _OneLineParser(prog="train.py", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=layout)
    _add_data(parser.add_argument_group("data and checkpoints"))
    _add_model(parser.add_argument_group("model"))
    _add_recipe(parser.add_argument_group("recipe"))
    add_arguments(parser.add_argument_group("service distillation"))
    return parser


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", metavar="FOLDER", help=f"images (default: the environment, then ./{DATA_LINK})")
    group.add_argument(
        "--checkpoint",
        metavar="URL",
        help=f"folder, or URL of file, hdfs or webhdfs (default: the environment, then ./{CHECKPOINT_LINK}, else none)",
    )
    group.add_argument(
        "--image_size", type=_int_from(8), default=224, metavar="PIXELS", help="side of the network's input (224)"
    )
    group.add_argument(
        "--augmentation",
        choices=AUGMENTATION_NAMES,
        default="crop_flip",
        help="crop_flip for photographs (default), shift_rotate for digits",
    )
    group.add_argument("--workers", type=_int_from(0), default=1, help="DataLoader processes of each worker (1)")


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", choices=MODEL_NAMES, default="resnet50", help="tiny is for tests (default resnet50)")
    group.add_argument(
        "--small_images", action="store_true", help="a stem without downsampling, for images of 8 to 16 pixels"
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="fp16 also scales the loss, for GPUs without bf16 (default fp32)",
    )


def _add_recipe(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=_int_from(1), default=90, help="(90)")
    group.add_argument(
        "--batch_policy",
        choices=("total", "per_worker"),
        default="total",
        help="total: the global batch is the same at every number of workers (default); "
        "per_worker: it grows with them, and the learning rate too",
    )
    group.add_argument("--total_batch_size", type=_int_from(2), default=256, metavar="N", help="with total (256)")
    group.add_argument("--worker_batch_size", type=_int_from(2), default=32, metavar="N", help="with per_worker (32)")
    group.add_argument(
        "--lr", type=_float_from(0), default=None, help="highest learning rate (0.1 for each 256 images of the batch)"
    )
    group.add_argument(
        "--lr_schedule",
        choices=("onecycle", "piecewise", "cosine"),
        default="cosine",
        help="runs on images seen, not on steps, so that a resize does not shift it (cosine)",
    )
    group.add_argument(
        "--warmup_epochs",
        type=_float_from(0),
        default=0.0,
        metavar="N",
        help="epochs of rising learning rate (0; onecycle: 30 %%)",
    )
    group.add_argument(
        "--decay_epochs",
        type=_float_from(0),
        nargs="+",
        metavar="N",
        help="piecewise: a tenth of the rate after each (1/3, 2/3, 8/9)",
    )
    group.add_argument("--momentum", type=_float_from(0, below=1), default=0.9, help="Nesterov's (0.9)")
    group.add_argument("--weight_decay", type=_float_from(0), default=1e-4, help="not on norms and biases (1e-4)")
    group.add_argument("--label_smoothing", type=_float_from(0, below=1), default=0.0, help="(0)")
    group.add_argument(
        "--evaluate_every", type=_int_from(1), default=1, metavar="N", help="epochs; the last always (1)"
    )
    group.add_argument("--seed", type=_int_from(0), default=0, help="of weights, order and augmentation (0)")


def _int_from(lowest: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
        if value < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, not {value}")
        return value

    return convert


def _float_from(lowest: float, *, below: float = math.inf) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
        if not lowest <= value < below:
            raise argparse.ArgumentTypeError(f"must be at least {lowest:g} and less than {below:g}, not {text}")
        return value

    return convert
