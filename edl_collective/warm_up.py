"""What a standby does before it is let in, so that the others need not wait for it in their first step together.

A process spends a tenth of a second and more on its first batch: the DataLoader starts its workers, a first forward and
backward set up kernels, workspaces and, on a GPU, seconds of libraries. It leaves no trace: gradients, running
statistics and random numbers are as before.
"""

from collections.abc import Callable
from typing import Any

import torch

from edl_collective.batches import ElasticBatchSampler, unwrap
from edl_collective.loader_workers import Loader, LoaderWorkers

#: The loss of a batch as the loader yields it: what the training loop gives to State.backward().
LossOf = Callable[[Any], torch.Tensor]

#: A page that a forked process shares has to be copied when the state of the others is received into it: 500 MB take
#: 1.4 s longer. Up to here starting the loader's processes in good time saves more (70 ms).
MAX_SHARED_BYTES = 32 * 1024**2


class Rehearsal:
    """The first step of a process, once and without consequences.

    Arguments: loader, whose workers are started, None for no rehearsal; loss_of, None to read but not compute;
    recorded, the loader reads a RecordingDataset. Raises ValueError for a `loss_of` without a loader.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        sampler: ElasticBatchSampler,
        workers: LoaderWorkers,
        loader: Loader[Any] | None,
        loss_of: LossOf | None,
        *,
        recorded: bool,
    ) -> None:
        if loss_of is not None and loader is None:
            raise ValueError("warm_up= is given without loader=: pass the DataLoader whose batches it is for")
        self._model = model
        self._sampler = sampler
        self._workers = workers
        self._loader = loader
        self._loss_of = loss_of
        self._recorded = recorded

    def run(self) -> None:
        """Start the workers and go forward and backward through a batch of the smallest size.

        Raises whatever the dataset, the model and `loss_of` raise.
        """
        if self._loader is None:
            return
        # Of no GPU if none is there: devices=None would be all of them.
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            # One more batch than there are workers: at its last one a loader would end them.
            with self._sampler.rehearsal(self._loader.num_workers + 1):
                batch = self._workers.prepare(self._loader)
            if self._loss_of is not None:
                self._compute(self._loss_of, unwrap(batch)[1] if self._recorded else batch)
        if self._shared_bytes() > MAX_SHARED_BYTES:
            self._workers.forget()

    def _shared_bytes(self) -> int:
        """Memory of the model that the loader's processes share with this one."""
        tensors = [*self._model.parameters(), *self._model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.device.type == "cpu")

    def _compute(self, loss_of: LossOf, batch: Any) -> None:
        before = [(buffer, buffer.detach().clone()) for buffer in self._model.buffers()]
        loss_of(batch).backward()  # type: ignore[no-untyped-call]
        self._model.zero_grad()
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
