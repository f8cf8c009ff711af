"""From options to the parts of a training: optimizer, batch policy, learning rate, loss, precision.

Each function builds one part and keeps nothing. The learning rate and the batch policy are functions of the images
seen, so that a change of the number of workers leaves them where they were.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

import edl_collective as edl
from edl_collective.scaling import BatchPolicy, Schedule
from options import Options


def make_optimizer(model: nn.Module, options: Options) -> torch.optim.SGD:
    """SGD with Nesterov's momentum; norms and biases, the parameters of one dimension, are not decayed."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.momentum > 0)


def make_batch_policy(options: Options, dataset_size: int) -> BatchPolicy:
    """The global batch: constant, or one share per worker, where a growth warms up over one epoch.

    No rank gets a single image, because batch norm cannot train on one.
    """
    if options.batch_policy == "total":
        return edl.TotalBatch(options.total_batch_size, min_local_batch=2)
    return edl.PerWorkerBatch(options.worker_batch_size, warmup_samples=dataset_size, min_local_batch=2)


def make_schedule(options: Options) -> Schedule:
    """The learning rate over epochs, a real number: its highest value is options.lr."""
    if options.lr_schedule == "onecycle":
        climb = options.warmup_epochs / options.epochs if options.warmup_epochs else 0.3
        return edl.OneCycleLR(options.lr, options.epochs, climb_fraction=climb)
    schedule: Schedule
    if options.lr_schedule == "cosine":
        schedule = edl.CosineLR(options.lr, options.epochs)
    else:
        values = [options.lr * 0.1**drop for drop in range(len(options.decay_epochs) + 1)]
        schedule = edl.PiecewiseLR(values, options.decay_epochs)
    return edl.LinearWarmup(schedule, options.warmup_epochs) if options.warmup_epochs else schedule


def autocast(options: Options, device: torch.device) -> AbstractContextManager[object]:
    """The precision of the forward pass; a new context for each."""
    if options.precision == "fp32":
        return nullcontext()
    low = torch.bfloat16 if options.precision == "bf16-autocast" else torch.float16
    return torch.autocast(device.type, dtype=low)


def make_scaler(options: Options, device: torch.device) -> torch.amp.GradScaler | None:
    """What keeps small fp16 gradients from vanishing; the other precisions need none."""
    return torch.amp.GradScaler(device.type) if options.precision == "fp16" else None
