"""A script as people have them: plain Horovod elastic, nothing of ours. The tests change its Horovod import, or not.

It says "batch <number> size <workers>" on rank 0 for each batch and ends with "done <batches> sum <sum of weights>".
"""

import argparse
import time
from pathlib import Path

import horovod.torch as hvd
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--stop_file", type=Path, required=True, help="training ends when rank 0 sees this file")
parser.add_argument("--step_s", type=float, default=0.0)
args = parser.parse_args()

hvd.init()
torch.manual_seed(1)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01 * hvd.size())
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())


def on_reset() -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * hvd.size()


@hvd.elastic.run  # type: ignore[untyped-decorator]
def train(state: hvd.elastic.TorchState) -> None:
    while not hvd.broadcast_object(args.stop_file.exists(), root_rank=0, name="stop"):
        inputs = torch.randn(8, 4)
        optimizer.zero_grad()
        loss = ((model(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()
        loss.backward()
        optimizer.step()
        state.batch += 1
        if hvd.rank() == 0:
            print(f"batch {state.batch} size {hvd.size()}", flush=True)
        time.sleep(args.step_s)
        state.commit()


state = hvd.elastic.TorchState(model=model, optimizer=optimizer, batch=0)
state.register_reset_callbacks([on_reset])
train(state)
if hvd.rank() == 0:
    print(f"done {state.batch} sum {model.weight.sum().item():.6f}", flush=True)
