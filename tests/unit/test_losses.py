"""Each loss against its paper's formula, written out in numpy float64 position by position."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from distill import losses
from distill.losses import LossError

Array = npt.NDArray[np.float64]
SHAPES = [(6, 5), (3, 4, 2, 3)]


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    powers = np.exp(logits / temperature)
    return np.asarray(powers / powers.sum())


def kl(p: Array, q: Array) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def z_scores(logits: Array) -> Array:
    return np.asarray((logits - logits.mean()) / np.sqrt(((logits - logits.mean()) ** 2).mean()))


def pearson(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def by_soft(s: Array, t: Array, _label: int) -> float:
    return float(-(softmax(t) * np.log(softmax(s))).sum())


def by_kd(s: Array, t: Array, _label: int) -> float:
    return 9 * kl(softmax(t, 3), softmax(s, 3))


def by_standardised_kd(s: Array, t: Array, _label: int) -> float:
    return 4 * kl(softmax(z_scores(t), 2), softmax(z_scores(s), 2))


def by_jsd(s: Array, t: Array, _label: int) -> float:
    p, q = softmax(t, 2), softmax(s, 2)
    m = 0.3 * p + 0.7 * q
    return 0.3 * kl(p, m) + 0.7 * kl(q, m)


def by_dkd(s: Array, t: Array, label: int) -> float:
    p, q = softmax(t, 4), softmax(s, 4)
    target = kl(np.array([p[label], 1 - p[label]]), np.array([q[label], 1 - q[label]]))
    others = kl(np.delete(p, label) / (1 - p[label]), np.delete(q, label) / (1 - q[label]))
    return 16 * (1.5 * target + 8 * others)


def by_dml(s: Array, t: Array, _label: int) -> float:
    return kl(softmax(t), softmax(s))


def by_hard(s: Array, _t: Array, label: int) -> float:
    return float(-np.log(softmax(s)[label]))


Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
#: loss, and its value at one position
POSITIONWISE: dict[str, tuple[Loss, Callable[[Array, Array, int], float]]] = {
    "soft": (lambda s, t, y, m: losses.soft_cross_entropy(s, t.softmax(1), m), by_soft),
    "kd": (lambda s, t, y, m: losses.kd(s, t, m, temperature=3), by_kd),
    "standardised kd": (lambda s, t, y, m: losses.kd(s, t, m, temperature=2, standardise=True), by_standardised_kd),
    "jsd": (lambda s, t, y, m: losses.jsd(s, t, m, beta=0.3, temperature=2), by_jsd),
    "dkd": (lambda s, t, y, m: losses.dkd(s, t, y, m, alpha=1.5, beta=8, temperature=4), by_dkd),
    "dml": (lambda s, t, y, m: losses.dml(s, t, m), by_dml),
    "hard": (lambda s, t, y, m: losses.hard_cross_entropy(s, y, m), by_hard),
}
EVERY: dict[str, Loss] = {name: loss for name, (loss, _) in POSITIONWISE.items()} | {
    "dist": lambda s, t, y, m: losses.dist(s, t, m),
}


def logits(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student (with a gradient), teacher, labels and a mask that leaves some positions out."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(shape, generator=generator, dtype=torch.float64).mul(3).requires_grad_()
    teacher = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
    positions = shape[:1] + shape[2:]
    labels = torch.randint(shape[1], positions, generator=generator)
    mask = torch.rand(positions, generator=generator) < 0.6
    return student, teacher, labels, mask


def positions_of(tensor: Tensor) -> Array:
    """[positions, C]"""
    return tensor.detach().movedim(1, -1).reshape(-1, tensor.shape[1]).numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=["rows", "maps"])
@pytest.mark.parametrize("name", POSITIONWISE)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_a_loss_is_the_mean_of_its_formula(name: str, shape: tuple[int, ...], masked: bool) -> None:
    loss, formula = POSITIONWISE[name]
    student, teacher, labels, mask = logits(shape, 1)
    rows = zip(positions_of(student), positions_of(teacher), labels.flatten().tolist(), strict=True)
    each = np.array([formula(s, t, label) for s, t, label in rows])
    expected = each[mask.flatten().numpy()].mean() if masked else each.mean()
    assert loss(student, teacher, labels, mask if masked else None).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_dist_is_one_minus_the_correlations_of_rows_and_columns(masked: bool) -> None:
    student, teacher, _, mask = logits((8, 5), 2)
    s, t = positions_of(student), positions_of(teacher)
    if masked:
        s, t = s[mask.numpy()], t[mask.numpy()]
    p, q = np.stack([softmax(row, 2) for row in t]), np.stack([softmax(row, 2) for row in s])
    inter = 1 - np.mean([pearson(a, b) for a, b in zip(p, q, strict=True)])
    intra = 1 - np.mean([pearson(a, b) for a, b in zip(p.T, q.T, strict=True)])
    value = losses.dist(student, teacher, mask if masked else None, beta=0.7, gamma=1.3, temperature=2)
    assert value.item() == pytest.approx(4 * (0.7 * inter + 1.3 * intra), rel=1e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_channelwise_compares_where_a_channel_is_active(masked: bool) -> None:
    student, teacher, _, mask = logits((3, 4, 2, 3), 3)
    mask[1] = False
    values = []
    for n in range(3):
        where = mask[n].numpy() if masked else np.ones((2, 3), bool)
        if where.any():
            pairs = [(teacher[n, c].numpy()[where], student[n, c].detach().numpy()[where]) for c in range(4)]
            values.append(np.mean([kl(softmax(t, 4), softmax(s, 4)) for t, s in pairs]))
    value = losses.channelwise(student, teacher, mask if masked else None, temperature=4)
    assert value.item() == pytest.approx(16 * np.mean(values), rel=1e-9)
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_what_is_masked_may_be_anything_and_gets_no_gradient(name: str) -> None:
    student, teacher, labels, mask = logits((6, 5), 4)
    assert not mask.all()
    expected = EVERY[name](student, teacher, labels, mask)
    teacher[~mask] = float("nan")
    labels[~mask] = -100
    value = EVERY[name](student, teacher, labels, mask)
    assert value.item() == expected.item()
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).any()


@pytest.mark.parametrize("name", EVERY)
def test_nothing_that_counts_is_zero(name: str) -> None:
    student, teacher, labels, _ = logits((6, 5), 5)
    value = EVERY[name](student, teacher, labels, torch.zeros(6, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("soft", "hard")])
def test_a_student_that_equals_its_teacher_loses_nothing(name: str) -> None:
    _, teacher, labels, _ = logits((6, 5), 6)
    assert EVERY[name](teacher.clone(), teacher, labels, None).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher, labels, _ = (x.to(dtype) if x.is_floating_point() else x for x in logits((6, 5), 7))
    student, teacher = student.detach(), teacher * 100  # exp() of these overflows half precision
    value = EVERY[name](student, teacher, labels, None)
    assert value.dtype is torch.float32
    assert value.item() == pytest.approx(EVERY[name](student.double(), teacher.double(), labels, None).item(), rel=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    student, teacher, labels, mask = logits((4, 5), 8)
    assert torch.autograd.gradcheck(lambda s: EVERY[name](s, teacher, labels, mask), (student,))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "shapes": (lambda: losses.kd(torch.zeros(2, 3), torch.zeros(2, 4)), r"\[2, 3\] and \[2, 4\]"),
    "no classes": (lambda: losses.kd(torch.zeros(3), torch.zeros(3)), r"must both be \[N, C"),
    "mask": (lambda: losses.kd(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3).bool()), r"mask is .*\[3\]"),
    "mask type": (lambda: losses.kd(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2)), "must be bool"),
    "temperature": (lambda: losses.kd(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0), "temperature is 0"),
    "beta": (lambda: losses.jsd(torch.zeros(2, 3), torch.zeros(2, 3), beta=1), "use kd"),
    "one class": (lambda: losses.dkd(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2).long()), "2 classes"),
    "labels": (lambda: losses.hard_cross_entropy(torch.zeros(2, 3), torch.zeros(3).long()), "labels are"),
    "rows": (lambda: losses.channelwise(torch.zeros(2, 3), torch.zeros(2, 3)), "compares maps"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case: str) -> None:
    call, text = BAD[case]
    with pytest.raises(LossError, match=text):
        call()
