"""What the jobs of all systems share: options, data, model, the pace of a step and the log of completed steps.

Invariant: a line is written when a step is completed and not before, in one write, so that SIGKILL tears at most the
last line. It knows no collective library.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from bench.steps import format_step

SAMPLES = 60_000
BATCH_PER_WORKER = 16
LOADER_WORKERS = 2
MOMENTUM = 0.9
LEARNING_RATE = 0.01
SEED = 1


class Job(argparse.Namespace):
    """The options of a job."""

    #: folder of the step logs
    log_dir: Path
    #: how long a step takes at least, as the computation of a bigger model would
    step_s: float
    #: size of a frozen parameter that is part of the state but not of the gradients
    frozen_mb: int
    #: where a system that goes on from checkpoints keeps them
    checkpoint_dir: Path
    #: completed steps between two checkpoints or commits, for systems that need them
    save_every: int
    #: largest world, for systems whose sampler has to know
    max_np: int
    #: number of this worker, for systems whose sampler has to know
    slot: int


def parse_job() -> Job:
    """The command line of every job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log_dir", type=Path, required=True)
    parser.add_argument("--record_dir", type=Path, help="ignored: what the tests' cluster passes to every program")
    parser.add_argument("--step_s", type=float, default=0.02)
    parser.add_argument("--frozen_mb", type=int, default=0)
    parser.add_argument("--checkpoint_dir", type=Path)
    parser.add_argument("--save_every", type=int, default=20)
    parser.add_argument("--max_np", type=int, default=8)
    parser.add_argument("--slot", type=int, default=0)
    torch.manual_seed(SEED)
    return parser.parse_args(namespace=Job())


def dataset() -> Dataset[tuple[torch.Tensor, ...]]:
    """60,000 grey images of 8 x 8 with labels of ten classes, the same in every process."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.rand(SAMPLES, 1, 8, 8, generator=generator)
    return TensorDataset(images, torch.randint(10, (SAMPLES,), generator=generator))


class Net(nn.Module):
    """A small convolutional network; `frozen_mb` adds a parameter that is state without being trained."""

    def __init__(self, frozen_mb: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip
        if frozen_mb:
            self.frozen = nn.Parameter(torch.zeros(frozen_mb, 250_000), requires_grad=False)  # [MB, 10**6 / 4]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Class scores [batch, 10] of images [batch, 1, 8, 8]."""
        scores: torch.Tensor = self.layers(pixels)
        return scores


def make_optimizer(model: nn.Module) -> torch.optim.SGD:
    """SGD with momentum over what is trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=MOMENTUM)


def loss_of(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, step_s: float) -> torch.Tensor:
    """The mean loss of a batch, after the time that a bigger model would compute for."""
    time.sleep(step_s)
    return nn.functional.cross_entropy(model(pixels), labels)


class StepLog:
    """The completed steps of this process, as lines of bench.steps."""

    def __init__(self, log_dir: Path) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        self._file = (log_dir / f"{os.getpid()}.steps").open("ab", buffering=0)
        self._entered_s = time.monotonic()

    def enter_world(self) -> None:
        """What follows is done in a world that begins now."""
        self._entered_s = time.monotonic()

    def completed(self, number: int, rank: int, size: int) -> None:
        """A step is completed: the `number`-th of the job's life, by this rank of a world of `size`."""
        self._file.write(format_step(time.monotonic(), self._entered_s, number, rank, size))
