"""The bench's job on torchft: each worker is a replica group of one process, with a store of its own.

Written after its README's train_ddp: Manager, ProcessGroupGloo, its DistributedDataParallel and OptimizerWrapper,
asynchronous quorum. torchrun is not needed around it: the store that it would bring is made here. Its groups do not
tell their rank, so the log has the slot, which nobody else in the world has. SIGTERM ends it between two steps.
"""

import signal
import threading
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.utils.data import DataLoader
from torchft import DistributedDataParallel, Manager, ProcessGroupGloo
from torchft.data import DistributedSampler
from torchft.optim import OptimizerWrapper

from bench.jobs import common

TIMEOUT = timedelta(seconds=5)


class NotingGroup(ProcessGroupGloo):  # type: ignore[misc]
    """Notes when it was formed anew."""

    log: common.StepLog

    def reconfigure(self, opts: Any) -> Any:
        work = super().reconfigure(opts)
        self.log.enter_world()
        return work


def main() -> None:
    job = common.parse_job()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    data = common.dataset()
    net = common.Net(job.frozen_mb)
    inner = common.make_optimizer(net)

    def load(parts: dict[str, Any]) -> None:
        net.load_state_dict(parts["model"])
        inner.load_state_dict(parts["optimizer"])

    group = NotingGroup(timeout=TIMEOUT)
    group.log = common.StepLog(job.log_dir)
    manager = Manager(
        pg=group,
        load_state_dict=load,
        state_dict=lambda: {"model": net.state_dict(), "optimizer": inner.state_dict()},
        min_replica_size=1,
        timeout=TIMEOUT,
        replica_id=f"bench_{job.slot}",
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        hostname="127.0.0.1",
    )
    model = DistributedDataParallel(manager, net)
    optimizer = OptimizerWrapper(manager, inner)
    sampler = DistributedSampler(
        data, replica_rank=job.slot, num_replica_groups=job.max_np, group_rank=0, num_replicas=1
    )
    loader: DataLoader[Any] = DataLoader(
        data, batch_size=common.BATCH_PER_WORKER, sampler=sampler, num_workers=common.LOADER_WORKERS, drop_last=True
    )
    leave = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: leave.set())
    while not leave.is_set():
        for pixels, labels in loader:
            before = manager.current_step()
            optimizer.zero_grad()
            torch.autograd.backward(common.loss_of(model, pixels, labels, job.step_s))
            optimizer.step()
            if manager.current_step() > before:  # else the step was thrown away
                group.log.completed(manager.current_step(), job.slot, group.size())
            if leave.is_set():
                manager.shutdown()
                break


if __name__ == "__main__":
    main()
