"""Weighted sums of losses from configuration entries."""

from typing import Any

import pytest
import torch

from distill import losses
from distill.losses import LossError
from distill.objective import TERMS, Batch, objective

STUDENT = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0]])
TEACHER = torch.tensor([[1.0, 1.5, -2.0], [0.0, 2.0, 0.3], [-3.0, 1.0, 0.5]])
LABELS = torch.tensor([0, 2, 1])


def test_the_total_is_the_weighted_sum_and_each_term_is_named() -> None:
    student = STUDENT.clone().requires_grad_()
    entries = [
        {"type": "hard", "weight": 0.3, "label_smoothing": 0.1},
        {"type": "kd", "weight": 2, "temperature": 4},
        {"type": "kd", "name": "cold", "standardise": True},
    ]
    total, terms = objective(entries)(Batch(student, TEACHER, LABELS))
    hard = losses.hard_cross_entropy(STUDENT, LABELS, label_smoothing=0.1)
    kd = losses.kd(STUDENT, TEACHER, temperature=4)
    cold = losses.kd(STUDENT, TEACHER, standardise=True)
    assert {name: value.item() for name, value in terms.items()} == {
        "hard": hard.item(), "kd": kd.item(), "cold": cold.item()
    }  # fmt: skip
    assert not any(value.requires_grad for value in terms.values())
    assert total.item() == pytest.approx((0.3 * hard + 2 * kd + cold).item())
    (gradient,) = torch.autograd.grad(total, student)
    assert (gradient != 0).any()


def test_positions_without_an_answer_or_without_a_label_are_left_to_the_other_term() -> None:
    answered, counts = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    entries = [{"type": "hard"}, {"type": "kd"}]
    _, terms = objective(entries)(Batch(STUDENT, TEACHER, LABELS, answered, counts))
    assert terms["hard"].item() == losses.hard_cross_entropy(STUDENT[:2], LABELS[:2]).item()
    assert terms["kd"].item() == pytest.approx(losses.kd(STUDENT[:1], TEACHER[:1]).item())


@pytest.mark.parametrize("kind", TERMS)
def test_every_type_can_be_configured(kind: str) -> None:
    maps = torch.linspace(-1, 1, 24).view(2, 3, 2, 2) ** 2
    _, terms = objective([{"type": kind}])(Batch(maps, maps.flip(1), torch.ones(2, 2, 2).long()))
    assert terms[kind].item() > 0


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([], "losses is empty"),
        ([{"weight": 1}], r"losses\[0\]: type is None: it must be one of hard"),
        ([{"type": "kd"}, {"type": "kd2"}], r"losses\[1\]: type is 'kd2'"),
        ([{"type": "kd", "temprature": 4}], "kd has no 'temprature'; it takes weight, name, temperature, standardise"),
        ([{"type": "kd", "mask": 1}], "kd has no 'mask'"),
        ([{"type": "kd", "weight": "1"}], "weight is '1': it must be a finite number"),
        ([{"type": "kd", "temperature": float("nan")}], "temperature is nan"),
        ([{"type": "kd", "weight": True}], "weight is True"),
        ([{"type": "kd"}, {"type": "kd"}], "more than one kd"),
    ],
)
def test_bad_entries_are_named(entries: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(LossError, match=text):
        objective(entries)


@pytest.mark.parametrize("kind", ["hard", "dkd"])
def test_a_loss_on_labels_asks_for_them(kind: str) -> None:
    with pytest.raises(LossError, match=f"{kind} needs the labels"):
        objective([{"type": kind}])(Batch(STUDENT, TEACHER))
