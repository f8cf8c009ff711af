"""How far a student's outputs are from a teacher's: the losses of knowledge distillation, each by its paper's formula.

Shapes: `student` and `teacher` are logits [N, C] or [N, C, d1, ...] of any floating type; `mask` is boolean
[N] or [N, d1, ...] and names the positions that count; labels are int64 of that same shape. Every loss is the mean over
the positions that count, computed in float32 or better, and 0 (with a gradient of 0) when none does; at other positions
the teacher may hold anything. Gradients flow into the student only. LossError (a ValueError) names what to change.
"""

import torch
from torch import Tensor
from torch.nn import functional

#: keeps a correlation or a standard deviation of constant logits finite; far below what float32 resolves of logits
EPSILON = 1e-7


class LossError(ValueError):
    """A loss was given tensors or options that do not fit each other."""


def soft_cross_entropy(student: Tensor, probabilities: Tensor, mask: Tensor | None = None) -> Tensor:
    """-sum_c p_c log q_c of soft labels p, which sum to 1 over dim 1 (Hinton et al. 2015, arXiv:1503.02531)."""
    _check(student, probabilities)
    counts = _counting(mask, student)
    p = _wide(probabilities.detach()).where(counts.unsqueeze(1), 0)
    return _mean(-(p * _wide(student).log_softmax(1)).sum(1), counts)


def kd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    standardise: bool = False,
) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)) (Hinton et al. 2015, arXiv:1503.02531).

    T^2 keeps the size of the gradients when T changes. standardise: of z-scores instead of logits (Sun et al. 2024,
    arXiv:2403.01427), so that the student need not match the range of the teacher.
    """
    p, q, counts = _tempered(student, teacher, mask, temperature, standardise)
    return temperature**2 * _mean(_kl(p, q), counts)


def jsd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, teacher p, student q.

    The generalised Jensen-Shannon divergence of Agarwal et al. 2024, arXiv:2306.13649; 0 < beta < 1. Not scaled by T^2,
    as there.
    """
    if not 0 < beta < 1:
        raise LossError(f"beta is {beta}: it must lie between 0 and 1, both excluded; use kd for either end")
    p, q, counts = _tempered(student, teacher, mask, temperature)
    weights = torch.tensor([beta, 1 - beta], dtype=p.dtype, device=p.device).log()
    m = torch.logsumexp(torch.stack([p + weights[0], q + weights[1]]), 0)
    return _mean(beta * _kl(p, m) + (1 - beta) * _kl(q, m), counts)


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """T^2 (alpha TCKD + beta NCKD): KD decoupled by the target class (Zhao et al. 2022, arXiv:2203.08679).

    TCKD compares target against all others as two classes, NCKD the others among themselves. Needs C >= 2.
    """
    p, q, counts = _tempered(student, teacher, mask, temperature)
    if p.shape[1] < 2:
        raise LossError("dkd needs at least 2 classes")
    target = torch.zeros_like(p, dtype=torch.bool).scatter_(1, _usable(labels, counts).unsqueeze(1), True)
    pairs = [_target_and_rest(log, target) for log in (p, q)]
    tckd = _kl(*(torch.stack([t, rest], 1) for t, rest in pairs))
    of_p, of_q = (log - rest.unsqueeze(1) for log, (_, rest) in zip((p, q), pairs, strict=True))
    nckd = (of_p.masked_fill(target, float("-inf")).exp() * (of_p - of_q).masked_fill(target, 0)).sum(1)
    return temperature**2 * _mean(alpha * tckd + beta * nckd, counts)


def dist(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """T^2 (beta inter + gamma intra), 1 - Pearson correlation of softmax(. / T) (Huang et al. 2022, arXiv:2205.10536).

    inter: over the classes of each position; intra: over the positions of each class, so it depends on the batch.
    """
    log_p, log_q, counts = _tempered(student, teacher, mask, temperature)
    p, q = (log.exp().movedim(1, -1)[counts] for log in (log_p, log_q))  # [positions that count, C]
    if not len(p):
        return q.sum()
    inter = 1 - _pearson(p, q).mean()
    intra = 1 - _pearson(p.T, q.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def dml(student: Tensor, peer: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(softmax(peer) || softmax(student)): mutual learning (Zhang et al. 2018, arXiv:1706.00384), one side of it.

    The other side is the peer's own training, with the arguments exchanged.
    """
    return kd(student, peer, mask)


def channelwise(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, temperature: float = 4.0) -> Tensor:
    """T^2 / C sum_c KL of softmax over the positions of each channel (Shu et al. 2021, arXiv:2011.13256).

    Of maps [N, C, d1, ...], logits or features, for dense prediction; the mean is over the samples. Positions that
    `mask` leaves out take no part in the softmax; a sample without any does not count.
    """
    _check(student, teacher)
    if student.dim() < 3:
        raise LossError(f"channelwise compares maps [N, C, d1, ...], not {list(student.shape)}")
    _check_temperature(temperature)
    counts = _counting(mask, student).flatten(1)
    usable = counts.any(1)
    # A sample that does not count at all keeps its positions, so that its softmax, and its gradient of 0, is finite.
    left_out = (~counts & usable.unsqueeze(1)).unsqueeze(1)
    logs = [
        (_wide(x).flatten(2) / temperature).masked_fill(left_out, float("-inf")).log_softmax(2)
        for x in (teacher.detach().where(_spread(usable, teacher), 0), student)
    ]
    p, q = (log.masked_fill(left_out, 0) for log in logs)
    return temperature**2 * _mean((p.exp() * (p - q)).sum(2).mean(1), usable)


def standardised(logits: Tensor) -> Tensor:
    """Z-scores over dim 1, with the population's standard deviation (Sun et al. 2024, arXiv:2403.01427)."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + EPSILON**2).sqrt()


def hard_cross_entropy(
    student: Tensor, labels: Tensor, mask: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross entropy with the data's own labels, as without any teacher."""
    counts = _counting(mask, student)
    usable = _usable(labels, counts)
    each = functional.cross_entropy(_wide(student), usable, reduction="none", label_smoothing=label_smoothing)
    return _mean(each, counts)


def counted(labels: Tensor, ignore_index: int) -> Tensor:
    """The mask of the positions whose label is not `ignore_index`."""
    return labels != ignore_index


# ---- parts ----------------------------------------------------------------------------------------------------------


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype is torch.float64 else tensor.float()


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.dim() < 2:
        shapes = f"{list(student.shape)} and {list(teacher.shape)}"
        raise LossError(f"student and teacher must both be [N, C, ...], not {shapes}: check the teacher's output name")


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise LossError(f"temperature is {temperature}: it must be positive")


def _tempered(
    student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float, standardise: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of teacher and student [N, C, ...], and which positions count."""
    _check(student, teacher)
    _check_temperature(temperature)
    counts = _counting(mask, student)
    t, s = _wide(teacher.detach()).where(counts.unsqueeze(1), 0), _wide(student)
    if standardise:
        t, s = standardised(t), standardised(s)
    return (t / temperature).log_softmax(1), (s / temperature).log_softmax(1), counts


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities over dim 1."""
    return (p.exp() * (p - q)).sum(1)


def _target_and_rest(log: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the target class, and of all others together."""
    of_target = log.masked_fill(~target, float("-inf")).logsumexp(1)
    return of_target, log.masked_fill(target, float("-inf")).logsumexp(1)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the rows of two matrices."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return functional.cosine_similarity(a, b, dim=1, eps=EPSILON)


def _counting(mask: Tensor | None, student: Tensor) -> Tensor:
    """The mask, or all positions."""
    shape = student.shape[:1] + student.shape[2:]
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=student.device)
    if mask.shape != shape or mask.dtype is not torch.bool:
        raise LossError(f"mask is {mask.dtype} {list(mask.shape)}: for these logits it must be bool {list(shape)}")
    return mask


def _usable(labels: Tensor, counts: Tensor) -> Tensor:
    """The labels, with class 0 where they do not count and may be an ignore_index."""
    if labels.shape != counts.shape:
        raise LossError(f"labels are {list(labels.shape)}: for these logits they must be {list(counts.shape)}")
    return labels.where(counts, 0)


def _spread(of_samples: Tensor, like: Tensor) -> Tensor:
    return of_samples.view(-1, *[1] * (like.dim() - 1))


def _mean(each: Tensor, counts: Tensor) -> Tensor:
    """Mean over the positions that count, 0 when none does."""
    return each.where(counts, 0).sum() / counts.sum().clamp(min=1)
