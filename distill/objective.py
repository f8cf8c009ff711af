"""A training objective as a weighted sum of losses, from the entries of a configuration file.

    losses:
      - {type: hard, weight: 0.3}
      - {type: kd, weight: 0.7, temperature: 4}

Each entry: `type` (a key of TERMS), `weight` (default 1), `name` (default: the type) under which its value is logged,
and that loss's own keyword arguments. A position without a teacher's answer is judged by the hard labels alone.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill import losses
from distill.losses import LossError


@dataclass(frozen=True, slots=True)
class Batch:
    """What the terms are computed from; shapes as in distill.losses.

    answered: where there is a teacher's answer, None for everywhere.
    counts: where the labels count, None for everywhere.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor | None = None
    answered: Tensor | None = None
    counts: Tensor | None = None

    @property
    def comparable(self) -> Tensor | None:
        """Positions that count and have an answer."""
        if self.answered is None or self.counts is None:
            return self.counts if self.answered is None else self.answered
        return self.answered & self.counts

    def known(self, type: str) -> Tensor:
        if self.labels is None:
            raise LossError(f"loss {type} needs the labels: pass labels=")
        return self.labels


#: each with the function whose keyword arguments its entries may hold
TERMS: Mapping[str, tuple[Callable[..., Tensor], Callable[[Batch, dict[str, Any]], Tensor]]] = {
    "hard": (
        losses.hard_cross_entropy,
        lambda b, options: losses.hard_cross_entropy(b.student, b.known("hard"), b.counts, **options),
    ),
    "soft": (
        losses.soft_cross_entropy,
        lambda b, options: losses.soft_cross_entropy(b.student, b.teacher.softmax(1), b.comparable, **options),
    ),
    "kd": (losses.kd, lambda b, options: losses.kd(b.student, b.teacher, b.comparable, **options)),
    "jsd": (losses.jsd, lambda b, options: losses.jsd(b.student, b.teacher, b.comparable, **options)),
    "dkd": (
        losses.dkd,
        lambda b, options: losses.dkd(b.student, b.teacher, b.known("dkd"), b.comparable, **options),
    ),
    "dist": (losses.dist, lambda b, options: losses.dist(b.student, b.teacher, b.comparable, **options)),
    "dml": (losses.dml, lambda b, options: losses.dml(b.student, b.teacher, b.comparable, **options)),
    "channelwise": (
        losses.channelwise,
        lambda b, options: losses.channelwise(b.student, b.teacher, b.comparable, **options),
    ),
}


@dataclass(frozen=True, slots=True)
class Term:
    name: str
    type: str
    weight: float
    options: Mapping[str, Any]


class Objective:
    """The weighted sum of `terms`; call it with a Batch."""

    def __init__(self, terms: Sequence[Term]) -> None:
        if not terms:
            raise LossError("losses is empty: give at least one entry, such as {type: kd, temperature: 4}")
        repeated = {t.name for t in terms if [u.name for u in terms].count(t.name) > 1}
        if repeated:
            raise LossError(f"losses has more than one {', '.join(sorted(repeated))}: tell them apart with name")
        self.terms = tuple(terms)

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The total to backpropagate, and each term by name, unweighted and detached, for the log."""
        values = {t.name: TERMS[t.type][1](batch, dict(t.options)) for t in self.terms}
        total = torch.stack([t.weight * values[t.name] for t in self.terms]).sum()
        return total, {name: value.detach() for name, value in values.items()}


def objective(entries: Sequence[Mapping[str, Any]]) -> Objective:
    """The objective of the `losses` entries of a configuration. Raises LossError naming the entry and its key."""
    return Objective([_term(number, entry) for number, entry in enumerate(entries)])


def _term(number: int, entry: Mapping[str, Any]) -> Term:
    where = f"losses[{number}]"
    options = dict(entry)
    kind = options.pop("type", None)
    if kind not in TERMS:
        raise LossError(f"{where}: type is {kind!r}: it must be one of {', '.join(TERMS)}")
    weight, name = options.pop("weight", 1.0), options.pop("name", kind)
    numbers = {"weight": weight, **{key: value for key, value in options.items() if not isinstance(value, bool)}}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise LossError(f"{where}: {key} is {value!r}: it must be a finite number")
    parameters = inspect.signature(TERMS[kind][0]).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for key in options:
        if key not in known:
            raise LossError(f"{where}: {kind} has no {key!r}; it takes {', '.join(['weight', 'name', *known])}")
    return Term(str(name), kind, float(weight), options)
