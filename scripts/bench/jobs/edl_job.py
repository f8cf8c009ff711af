"""The bench's job on edl_collective."""

from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

import edl_collective as edl
from bench.jobs import common


def main() -> None:
    job = common.parse_job()
    edl.init(seed=common.SEED)
    data = common.dataset()
    model = common.Net(job.frozen_mb)
    sampler = edl.ElasticBatchSampler(common.SAMPLES, edl.PerWorkerBatch(common.BATCH_PER_WORKER, min_local_batch=2))
    loader: DataLoader[Any] = DataLoader(data, batch_sampler=sampler, num_workers=common.LOADER_WORKERS)

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, labels = batch
        return common.loss_of(model, pixels, labels, job.step_s)

    state = edl.State(
        model=model,
        optimizer=common.make_optimizer(model),
        sampler=sampler,
        loader=loader,
        warm_up=loss_of,
    )
    log = common.StepLog(job.log_dir)

    @edl.run
    def train(state: edl.State) -> None:
        log.enter_world()
        for _epoch in state.epochs(1_000_000):
            for batch in state.batches(loader):
                state.backward(loss_of(batch), len(batch[1]))
                state.step()
                log.completed(state.global_step, edl.rank(), edl.size())

    train(state)


if __name__ == "__main__":
    main()
