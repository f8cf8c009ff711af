"""The bench's job on stock Horovod elastic, as its documentation writes it: TorchState and ElasticSampler.

It asks for changes of the hosts after each step and commits every --save_every steps. The number of steps is a buffer
of the model, because Horovod's sync() hands out live parameters but the committed values of other attributes.
"""

from typing import Any

import horovod.torch as hvd
import torch
from torch.utils.data import DataLoader

from bench.jobs import common


def main() -> None:
    job = common.parse_job()
    hvd.init()
    data = common.dataset()
    model = common.Net(job.frozen_mb)
    steps = torch.zeros(1, dtype=torch.int64)
    model.register_buffer("steps", steps)
    optimizer = hvd.DistributedOptimizer(common.make_optimizer(model), named_parameters=model.named_parameters())
    sampler = hvd.elastic.ElasticSampler(data)
    loader: DataLoader[Any] = DataLoader(
        data, batch_size=common.BATCH_PER_WORKER, sampler=sampler, num_workers=common.LOADER_WORKERS, drop_last=True
    )
    log = common.StepLog(job.log_dir)

    @hvd.elastic.run  # type: ignore[untyped-decorator]
    def train(state: Any) -> None:
        log.enter_world()
        while True:
            for number, (pixels, labels) in enumerate(loader):
                optimizer.zero_grad()
                torch.autograd.backward(common.loss_of(model, pixels, labels, job.step_s))
                optimizer.step()
                sampler.record_batch(number, len(labels))
                steps.add_(1)
                log.completed(int(steps), hvd.rank(), hvd.size())
                if int(steps) % job.save_every == 0:
                    state.commit()
                else:
                    state.check_host_updates()
            sampler.set_epoch(sampler.epoch + 1)

    train(hvd.elastic.TorchState(model=model, optimizer=optimizer, sampler=sampler))


if __name__ == "__main__":
    main()
