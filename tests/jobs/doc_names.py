"""What blocks of Python in the documentation take as the reader's own: a small model, its data, and the rest."""

import argparse
import itertools
import os  # noqa: F401  blocks use it
from typing import Any

import no_compiler  # noqa: F401  it takes seconds
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
scaler = torch.amp.GradScaler("cpu", enabled=False)
criterion = nn.CrossEntropyLoss()
dataset = TensorDataset(torch.randn(600, 8), torch.randint(4, (600,)))
loader: DataLoader[Any] = DataLoader(dataset, batch_size=100)
parser = argparse.ArgumentParser()
epoch, epochs = 0, 2
rank = 0
_hits = itertools.count()


def train_step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer.zero_grad()
    criterion(model(inputs), labels).backward()
    optimizer.step()


def evaluate(*_: object) -> float:
    """An accuracy that rises."""
    return 1 - 1 / (2 + next(_hits))
