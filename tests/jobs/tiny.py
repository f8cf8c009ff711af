"""The job of the end-to-end tests: a small CNN on scikit-learn's digits, with every step's samples recorded.

Each worker writes what it took to <record_dir>/<worker or pid>.jsonl, and when it completed each step to the file
beside it that ends in .times ("monotonic seconds, generation, steps completed"; the clock is the machine's).
`--step_s` makes a step last as long as on a bigger model, so that there is time to do things to the job in the middle
of an epoch. Once there is a file named "hurry" in <record_dir>, steps are as short as they can be: all was done to it.
"""

import argparse
import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import no_compiler  # noqa: F401
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edl_collective as edl
from jobserver.drill.steps import StepTimes


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's images [1797, 1, 8, 8] in [0, 1] and labels, read without the second that importing it takes."""
    found = importlib.util.find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(path, delimiter=",", dtype=np.float32)  # [1797, 65]
    images = torch.from_numpy(rows[:, :-1]).reshape(-1, 1, 8, 8) / 16.0
    return images, torch.from_numpy(rows[:, -1]).long()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--min_local_batch", type=int, default=2)
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--step_s", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--record_dir", type=Path, default=None)
    args = parser.parse_args()

    edl.init(seed=args.seed)
    images, labels = digits()
    train_set = TensorDataset(images[: args.samples], labels[: args.samples])
    held_out = images[1500:], labels[1500:]
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    sampler = edl.ElasticBatchSampler(
        len(train_set), edl.TotalBatch(args.batch, min_local_batch=args.min_local_batch), seed=args.seed
    )
    loader: DataLoader[Any] = DataLoader(edl.RecordingDataset(train_set), batch_sampler=sampler)
    step_log, times, hurry = None, None, None
    if args.record_dir is not None:
        args.record_dir.mkdir(parents=True, exist_ok=True)
        name = os.environ.get("EDL_WORKER", str(os.getpid()))
        step_log = edl.StepLog(args.record_dir / f"{name}.jsonl")
        times = StepTimes(args.record_dir, name)
        hurry = args.record_dir / "hurry"
    state = edl.State(
        model=model,
        optimizer=optimizer,
        sampler=sampler,
        schedule=edl.CosineLR(args.lr, args.epochs),
        checkpoint_url=edl.checkpoint_url(),
        step_log=step_log,
    )
    if step_log is None:
        loader = DataLoader(train_set, batch_sampler=sampler)

    @edl.run
    def train(state: edl.State) -> None:
        for _epoch in state.epochs(args.epochs):
            model.train()
            for pixels, targets in state.batches(loader):
                state.backward(nn.functional.cross_entropy(model(pixels), targets), len(targets))
                state.step()
                if times is not None:
                    times.completed(sampler.generation, state.global_step)
                if hurry is None or not hurry.exists():
                    time.sleep(args.step_s)
            model.eval()
            with torch.no_grad():
                hits = float((model(held_out[0]).argmax(1) == held_out[1]).sum())
            state.report(accuracy=hits / len(held_out[1]))

    train(state)


if __name__ == "__main__":
    main()
