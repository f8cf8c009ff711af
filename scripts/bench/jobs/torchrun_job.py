"""The bench's job under torchrun: DistributedDataParallel on gloo, with a checkpoint every --save_every steps.

torchrun restarts all processes on every change, so the checkpoint is what a job goes on from; it is written by rank 0
to a temporary name and renamed, and lies on the local disk.
"""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from bench.jobs import common


def save(path: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Replace the checkpoint."""
    torch.save(
        {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, path.with_suffix(".new")
    )
    os.replace(path.with_suffix(".new"), path)


def main() -> None:
    job = common.parse_job()
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    data = common.dataset()
    net = common.Net(job.frozen_mb)
    optimizer = common.make_optimizer(net)
    step, checkpoint = 0, job.checkpoint_dir / "latest.pt"
    job.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        saved = torch.load(checkpoint, mmap=True)
        net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    model = DistributedDataParallel(net)
    sampler: DistributedSampler[Any] = DistributedSampler(data)
    loader: DataLoader[Any] = DataLoader(
        data, batch_size=common.BATCH_PER_WORKER, sampler=sampler, num_workers=common.LOADER_WORKERS, drop_last=True
    )
    log = common.StepLog(job.log_dir)
    for epoch in range(step // len(loader), 1_000_000):
        sampler.set_epoch(epoch)
        for pixels, labels in loader:
            optimizer.zero_grad()
            torch.autograd.backward(common.loss_of(model, pixels, labels, job.step_s))
            optimizer.step()
            step += 1
            log.completed(step, rank, size)
            if rank == 0 and step % job.save_every == 0:
                save(checkpoint, step, net, optimizer)


if __name__ == "__main__":
    main()
