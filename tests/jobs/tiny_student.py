"""A student of the end-to-end tests: it learns from the teachers of a service, whose answers tell for which sample.

Every batch is checked against its predictions; what was taken is recorded, and "hurry" is heeded, as in tiny.py.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import no_compiler  # noqa: F401
import torch
from torch import nn
from torch.utils.data import DataLoader

import edl_collective as edl
from distill.reader import DistillReader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from distill_students import WIDTH, Numbered, check


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=800)
    parser.add_argument("--step_s", type=float, default=0.0)
    parser.add_argument("--service", required=True)
    parser.add_argument("--record_dir", type=Path, required=True)
    args = parser.parse_args()

    edl.init(seed=1)
    model = nn.Linear(WIDTH, 1)
    sampler = edl.ElasticBatchSampler(args.samples, edl.TotalBatch(16, min_local_batch=2), seed=1)
    loader = DataLoader(edl.RecordingDataset(Numbered(args.samples)), batch_sampler=sampler, num_workers=1)
    reader = DistillReader(loader, ins=["x"], predicts=["y"], no_teacher_timeout_s=60.0)
    reader.set_dynamic_teacher(args.service)  # in the ZooKeeper of the job
    args.record_dir.mkdir(parents=True, exist_ok=True)
    hurry = args.record_dir / "hurry"
    state = edl.State(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        sampler=sampler,
        step_log=edl.StepLog(args.record_dir / f"{os.environ['EDL_WORKER']}.jsonl"),
    )

    @edl.run
    def train(state: edl.State) -> None:
        for _epoch in state.epochs(args.epochs):
            for pixels, labels, predictions in state.batches(reader):
                check(pixels, labels, predictions)
                wanted = predictions[:, :1] / args.samples
                state.backward(nn.functional.mse_loss(model(pixels / 255.0), wanted), len(labels))
                state.step()
                if not hurry.exists():
                    time.sleep(args.step_s)

    with reader:
        train(state)


if __name__ == "__main__":
    main()
