"""The bench's job on stock Horovod elastic, as its documentation writes it: TorchState and ElasticSampler.

It asks for changes of the hosts after each step and commits every --save_every steps.
"""

from typing import Any

import horovod.torch as hvd
from torch.utils.data import DataLoader

from bench.jobs import common


def main() -> None:
    job = common.parse_job()
    hvd.init()
    data = common.dataset()
    model = common.Net(job.frozen_mb)
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
                common.loss_of(model, pixels, labels, job.step_s).backward()
                optimizer.step()
                sampler.record_batch(number, len(labels))
                state.step += 1
                log.completed(state.step, hvd.rank(), hvd.size())
                if state.step % job.save_every == 0:
                    state.commit()
                else:
                    state.check_host_updates()
            sampler.set_epoch(sampler.epoch + 1)

    train(hvd.elastic.TorchState(model=model, optimizer=optimizer, sampler=sampler, step=0))


if __name__ == "__main__":
    main()
