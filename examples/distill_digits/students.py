"""One student, trained in one of three modes that differ in who says what the teacher thinks of a batch.

plain: nobody, it has the labels alone. in-process: the teacher runs in the trainer. service: teacher servers, through a
DistillReader. The loop is one and the same, and so are the images, their order and the student's first weights.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

import nets
from digits import CLASSES, MEAN, STD, Images, Shifted, normalised
from distill.objective import Batch, Objective, objective
from distill.reader import DistillReader
from distill.records import Normalisation
from train_teacher import accuracy

PLAIN, IN_PROCESS, SERVICE = MODES = ("plain", "in-process", "service")
#: what the plain student learns from
HARD_ONLY = ({"type": "hard"},)


@dataclass(frozen=True)
class Setting:
    """What a student learns from, and how long."""

    #: images that it has, of the 1,000
    images: int = 300
    #: share of them with a label drawn anew, as by an annotator who guesses
    wrong_labels: float = 0.3
    #: of its hidden layer
    width: int = 32
    epochs: int = 40
    batch_size: int = 32
    lr: float = 0.03
    #: DataLoader processes
    workers: int = 1


@dataclass(frozen=True)
class Outcome:
    """How one student did."""

    mode: str
    seed: int
    #: of the test images
    accuracy: float
    #: from the second epoch on
    images_per_s: float
    #: that a step waited for teachers, milliseconds, from the second epoch on
    waited_ms: float
    #: mean of each loss over the last epoch, by name, unweighted
    losses: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def images_of(train: Images, setting: Setting, seed: int) -> Images:
    """The images of one student, some of their labels wrong; equal for equal seeds."""
    generator = torch.Generator().manual_seed(seed)
    own = train.part(torch.randperm(len(train.labels), generator=generator)[: setting.images])
    wrong = torch.rand(len(own.labels), generator=generator) < setting.wrong_labels
    guesses = torch.randint(0, CLASSES, own.labels.shape, generator=generator)
    return Images(own.pixels, torch.where(wrong, guesses, own.labels))


class InProcess(AbstractContextManager["InProcess"]):
    """What a DistillReader does, in the trainer: the loader's batches with the teacher's logits [batch, 10]."""

    def __init__(self, loader: "DataLoader[Any]", teacher: nn.Module) -> None:
        self._loader, self._teacher = loader, teacher

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for pixels, labels in self._loader:
            with torch.no_grad():
                answers = self._teacher(normalised(pixels))
            yield pixels, labels, answers

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""


def train_student(
    mode: str,
    seed: int,
    setting: Setting,
    data: tuple[Images, Images],
    losses: Sequence[Mapping[str, Any]],
    *,
    teacher: nn.Module | None = None,
    reader_options: Mapping[str, Any] | None = None,
) -> Outcome:
    """Train a student and test it.

    Args:
        data: images to train on, of which it gets its part, and to test with.
        losses: entries of distill.objective, for the modes with a teacher.
        teacher: for mode in-process.
        reader_options: of the DistillReader of mode service: teachers=..., or service=... and zookeeper=...
    """
    shifted = Shifted(images_of(data[0], setting, seed), seed=seed)
    sampler = RandomSampler(shifted, generator=torch.Generator().manual_seed(seed))
    loader = DataLoader(
        shifted,
        setting.batch_size,
        sampler=sampler,
        num_workers=setting.workers,
        persistent_workers=setting.workers > 0,
    )
    torch.manual_seed(seed)
    model = nets.student(setting.width)
    with _source(mode, loader, teacher, reader_options or {}) as batches:
        speed, waited_ms, means = _learn(
            model, shifted, batches, objective(HARD_ONLY if mode == PLAIN else losses), setting
        )
    return Outcome(mode, seed, accuracy(model, data[1]), speed, waited_ms, means)


def _source(
    mode: str, loader: "DataLoader[Any]", teacher: nn.Module | None, options: Mapping[str, Any]
) -> AbstractContextManager[Iterable[Any]]:
    """The batches of a mode: pixels, labels, and behind them what the teacher says."""
    if mode == PLAIN:
        return nullcontext(loader)
    if mode == IN_PROCESS:
        if teacher is None:
            raise ValueError("mode in-process needs the teacher itself")
        return InProcess(loader, teacher)
    # The teacher must be what this student thinks it is: these classes, this normalisation.
    normalisation = Normalisation((MEAN,), (STD,))
    return DistillReader(
        loader,
        ins=["image"],
        predicts=["output"],
        predict_shapes={"output": (CLASSES,)},
        normalisation=normalisation,
        **options,
    )


def _learn(
    model: nn.Module, images: Shifted, batches: Iterable[Any], total: Objective, setting: Setting
) -> tuple[float, float, dict[str, float]]:
    """Train; images/s and milliseconds that a step waited from the second epoch on, and the last one's mean losses."""
    steps = setting.epochs * -(-len(images) // setting.batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, setting.lr, total_steps=steps)
    begin_s, waited_s = time.monotonic(), 0.0
    for epoch in range(setting.epochs):
        if epoch == 1:  # processes start in the first one
            begin_s, waited_s = time.monotonic(), _waited_s(batches)
        images.set_epoch(epoch)
        sums: dict[str, float] = {}
        for pixels, labels, *answers in batches:
            logits = model(normalised(pixels))
            loss, terms = total(_batch(logits, labels, answers))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(labels)
    took_s, waited_s = time.monotonic() - begin_s, _waited_s(batches) - waited_s
    share = max(1, setting.epochs - 1) / setting.epochs  # of the steps that are timed
    means = {name: value / len(images) for name, value in sums.items()}
    return share * setting.epochs * len(images) / took_s, waited_s / (share * steps) * 1000, means


def _waited_s(batches: Iterable[Any]) -> float:
    """How long the student has waited for teachers until now."""
    return batches.stats.waited_s if isinstance(batches, DistillReader) else 0.0


def _batch(logits: Tensor, labels: Tensor, answers: Sequence[Tensor]) -> Batch:
    """answers: nothing, or the teacher's logits, or these and the mask of on_no_teacher="hard_labels"."""
    teacher, *mask = answers or (logits.detach(),)  # a plain student's losses do not look at the teacher
    return Batch(logits, teacher, labels, answered=mask[0] if mask else None)
