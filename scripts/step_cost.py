"""What State.batches() and State.step() add to a step of a plain Horovod loop; run on each rank by measure.py.

Blocks of steps of both loops take turns in the same processes, with equal models, data and reductions. Rank 0 prints
"added" and a JSON list: milliseconds that a step takes longer, one figure for each pair of blocks.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import torch
from torch.utils.data import DataLoader, TensorDataset

import edl_collective as edl

SAMPLES, BATCH = 200_000, 8
STEPS = 200


def block_ms(step: Callable[[], None]) -> float:
    """Milliseconds of one step, on average over a block."""
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return 1000 * (time.perf_counter() - began) / STEPS


def make_model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def main() -> None:
    edl.init(seed=1)
    torch.set_num_threads(1)
    data = TensorDataset(torch.randn(SAMPLES, 16), torch.randint(4, (SAMPLES,)))
    model, optimizer = make_model()
    sampler = edl.ElasticBatchSampler(SAMPLES, edl.PerWorkerBatch(BATCH))
    loader: DataLoader[Any] = DataLoader(data, batch_sampler=sampler)
    state = edl.State(model=model, optimizer=optimizer, sampler=sampler)

    @edl.run
    def compare(state: edl.State) -> list[float]:
        plain_model, base = make_model()
        plain = hvd.DistributedOptimizer(base, named_parameters=plain_model.named_parameters(), op=hvd.Sum)
        plain_batches = iter(DataLoader(data, batch_size=BATCH, shuffle=True))
        epoch = state.epochs(1)
        next(epoch)
        batches = state.batches(loader)

        def plain_step() -> None:
            inputs, targets = next(plain_batches)
            torch.autograd.backward(torch.nn.functional.cross_entropy(plain_model(inputs), targets) / edl.size())
            plain.step()
            plain.zero_grad()

        def elastic_step() -> None:
            inputs, targets = next(batches)
            state.backward(torch.nn.functional.cross_entropy(model(inputs), targets), len(targets))
            state.step()

        block_ms(plain_step), block_ms(elastic_step)  # what the first steps of a process cost is no part of it
        return [-block_ms(plain_step) + block_ms(elastic_step) for _ in range(int(sys.argv[1]))]

    added = compare(state)
    if os.environ.get("HOROVOD_RANK", "0") == "0":  # the world is gone when run() has returned
        print(f"added {json.dumps(added)}", flush=True)


if __name__ == "__main__":
    main()
