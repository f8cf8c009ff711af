"""What train.py needs to learn from teachers: pixels as they take them, a reader around the loader, the losses.

Without `--use_distill_service` none of it is used but PlainCriterion, the cross entropy with the labels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from data import CHANNEL_MEAN, CHANNEL_STD, Sample
from distill.arguments import read_losses
from distill.objective import Batch, objective
from distill.reader import DistillReader
from distill.records import Normalisation
from options import Options

#: without --losses: the teacher's soft labels alone, which is how the published student learned
SOFT_LABELS: Sequence[Mapping[str, Any]] = ({"type": "soft"},)
#: names of the teacher's input and output: those of `edl teacher serve`
INPUT, OUTPUT = "image", "output"

SumAcross = Callable[[list[float]], Sequence[float]]


class ChannelsFirst(Dataset[Sample]):
    """The same samples with pixels uint8 [3, size, size], a view: what teachers of images take."""

    def __init__(self, images: Dataset[Sample]) -> None:
        self._images = images

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        """See the class."""
        pixels, label = self._images[index]
        return pixels.permute(2, 0, 1), label  # [size, size, 3] -> [3, size, size]


def with_teachers(options: Options, loader: "DataLoader[Sample]", classes: int) -> "DataLoader[Sample] | DistillReader":
    """The loader, or a reader around it whose batches end with the teacher's logits [batch, classes].

    The reader refuses teachers with another number of classes, or that normalise pixels otherwise than data.py.
    """
    if not options.distill.use:
        return loader
    mean, std = (tuple(value / 255 for value in values) for values in (CHANNEL_MEAN, CHANNEL_STD))
    return DistillReader(
        loader,
        ins=[INPUT],
        predicts=[OUTPUT],
        predict_shapes={OUTPUT: (classes,)},
        normalisation=Normalisation(mean, std),
        **options.distill.reader_options(),
    )


class Criterion(Protocol):
    """The loss of a batch, and what an epoch's line says of it."""

    def __call__(self, logits: Tensor, labels: Tensor, answers: Sequence[Tensor]) -> Tensor:
        """logits [N, classes], labels int64 [N], answers: what a reader appended -> a scalar."""

    def begin(self) -> None:
        """An epoch begins, or goes on in another world."""

    def means(self, sum_across: SumAcross) -> dict[str, float]:
        """The mean of each loss over the images of all ranks since `begin`, by name."""


class PlainCriterion:
    """Cross entropy with the labels."""

    def __init__(self, label_smoothing: float) -> None:
        self._loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def __call__(self, logits: Tensor, labels: Tensor, answers: Sequence[Tensor]) -> Tensor:
        """See Criterion; there are no answers."""
        assert not answers
        loss: Tensor = self._loss(logits, labels)
        return loss

    def begin(self) -> None:
        """Nothing is kept: the state reports the mean loss itself."""

    def means(self, sum_across: SumAcross) -> dict[str, float]:
        """None."""
        del sum_across
        return {}


class DistillCriterion:
    """A weighted sum of losses; answers are the teacher's logits, and the mask of --on_no_teacher hard_labels."""

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self._total = objective(entries)
        self._names = [term.name for term in self._total.terms]
        self.begin()

    def begin(self) -> None:
        """See Criterion."""
        self._images = 0
        #: of each loss, by name, times the images; stays on the device
        self._sums: dict[str, Tensor] = {}

    def __call__(self, logits: Tensor, labels: Tensor, answers: Sequence[Tensor]) -> Tensor:
        """See Criterion."""
        teacher, *mask = answers
        loss, terms = self._total(Batch(logits, teacher, labels, answered=mask[0] if mask else None))
        self._images += len(labels)
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value * len(labels)
        return loss

    def means(self, sum_across: SumAcross) -> dict[str, float]:
        """See Criterion; under distill_<name>."""
        own = [float(self._sums[name]) if name in self._sums else 0.0 for name in self._names]
        images, *sums = sum_across([float(self._images), *own])
        return {f"distill_{name}": total / max(1.0, images) for name, total in zip(self._names, sums, strict=True)}


def make_criterion(options: Options) -> Criterion:
    """What the options ask for. Raises ConfigError, LossError, OSError for a file of --losses that is none."""
    if not options.distill.use:
        return PlainCriterion(options.label_smoothing)
    return DistillCriterion(SOFT_LABELS if options.distill.losses is None else read_losses(options.distill.losses))
