"""A small job in one process, between two steps: Horovod is real and alone, the worlds are what the test gives.

It asserts nothing; test_state.py, test_state_held.py and collective_ranks.py do.
"""

import time
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from edl_collective.batches import ElasticBatchSampler
from edl_collective.held import Held
from edl_collective.messages import Assigned, Happened, Report
from edl_collective.phases import Phases
from edl_collective.scaling import BatchPolicy, CosineLR, TotalBatch
from edl_collective.state import State

SAMPLES = 10


class GivenWorlds:
    """A world of one, with the generation and the notice that the test gives."""

    cause = "test"
    driver_epoch = 0
    place: Assigned | None = None
    phases = Phases(time.monotonic)

    def __init__(self, generation: int | None = None, held: Held | None = None) -> None:
        self.generation = generation
        self.held = held
        self.level = False
        self.events: list[Happened] = []
        self.reports: list[Report] = []

    def enter(self) -> None: ...

    def exit(self) -> None: ...

    def give_up(self) -> None: ...

    def interrupted(self) -> bool:
        return self.level

    def finish(self) -> None: ...

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def happened(self, event: Happened) -> None:
        self.events.append(event)

    def told(self, kind: str) -> list[str]:
        return [event.text for event in self.events if event.kind == kind]


class TornOnce(torch.optim.SGD):
    """Fails once in the middle of an update, when some parameters have changed."""

    fail = False

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        if TornOnce.fail:  # not type(self): Horovod wraps it in a class of its own
            TornOnce.fail = False
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1000.0)
            raise RuntimeError("torn")
        super().step()


class Job:
    """A linear model on ten samples in batches of four: three steps an epoch."""

    def __init__(
        self,
        *,
        worlds: GivenWorlds | None = None,
        policy: BatchPolicy | None = None,
        schedule: CosineLR | None = None,
        checkpoint_url: str | None = None,
        optimizer: type[torch.optim.SGD] = torch.optim.SGD,
    ) -> None:
        torch.manual_seed(1)
        self.worlds = worlds or GivenWorlds()
        self.model = torch.nn.Linear(2, 1)
        inputs = torch.randn(SAMPLES, 2)
        self.sampler = ElasticBatchSampler(SAMPLES, policy or TotalBatch(4))
        self.loader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_sampler=self.sampler)
        groups: list[dict[str, Any]] = [
            {"params": [self.model.weight]},
            {"params": [self.model.bias], "lr": 0.4, "lr_scale": 2.0},
        ]
        self.state = State(
            model=self.model,
            optimizer=optimizer(groups, lr=0.1, momentum=0.9),
            sampler=self.sampler,
            schedule=schedule,
            checkpoint_url=checkpoint_url,
        )

    def enter(self) -> "Job":
        self.state.enter(self.worlds)
        return self

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        inputs, targets = batch
        loss: torch.Tensor = ((self.model(inputs) - targets) ** 2).mean()
        return loss

    def step(self, batch: list[torch.Tensor]) -> None:
        self.state.backward(self.loss(batch), len(batch[0]))
        self.state.step()

    def train(self, epochs: int) -> "Job":
        for _ in self.state.epochs(epochs):
            for batch in self.state.batches(self.loader):
                self.step(batch)
        return self

    def weights(self) -> list[float]:
        return [*self.model.weight.flatten().tolist(), *self.model.bias.tolist()]
