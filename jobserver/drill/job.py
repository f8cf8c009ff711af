"""The job of a drill, `python -m jobserver.drill.job`: a small network on made-up samples, every step of it recorded.

Each worker writes the samples that it took to <record_dir>/<worker>.jsonl (edl_collective.audit) and when it completed
each step to <worker>.times (jobserver.drill.steps). It imports torch, so the JobServer imports it nowhere.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edl_collective as edl
from jobserver.drill.steps import StepTimes

FEATURES, CLASSES = 32, 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m jobserver.drill.job", description="The training job of edl drill.")
    parser.add_argument("--record_dir", type=Path, required=True)
    parser.add_argument("--samples", type=int, required=True, help="samples of an epoch")
    parser.add_argument("--batch", type=int, default=64, help="samples of a step, all workers together")
    parser.add_argument("--step_s", type=float, default=0.02, help="added to each step")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    edl.init(seed=args.seed)
    made_up = torch.Generator().manual_seed(args.seed)
    inputs = torch.randn(args.samples, FEATURES, generator=made_up)
    data = TensorDataset(inputs, torch.randint(CLASSES, (args.samples,), generator=made_up))
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    sampler = edl.ElasticBatchSampler(len(data), edl.TotalBatch(args.batch, min_local_batch=2), seed=args.seed)
    loader = DataLoader(edl.RecordingDataset(data), batch_sampler=sampler)
    args.record_dir.mkdir(parents=True, exist_ok=True)
    worker = os.environ["EDL_WORKER"]
    times = StepTimes(args.record_dir, worker)
    state = edl.State(
        model=model,
        optimizer=optimizer,
        sampler=sampler,
        checkpoint_url=edl.checkpoint_url(),
        step_log=edl.StepLog(args.record_dir / f"{worker}.jsonl"),
    )

    @edl.run
    def train(state: edl.State) -> None:
        for _epoch in state.epochs(10**9):
            for batch, targets in state.batches(loader):
                state.backward(nn.functional.cross_entropy(model(batch), targets), len(targets))
                state.step()
                times.completed(sampler.generation, state.global_step)
                time.sleep(args.step_s)

    train(state)


if __name__ == "__main__":
    main()
