"""Evaluation in shares: each rank counts its own images, and the counts are added.

An image is counted by exactly one rank, at any number of ranks. Nothing here talks to other ranks; train.py adds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

#: Of a batch as the DataLoader yields it: pixels uint8 [N, H, W, 3], labels int64 [N].
Batch = tuple[Tensor, Tensor]


class ShareOfEvaluation(Sampler[list[int]]):
    """Batches of the indices rank, rank + size, rank + 2 * size ... of `samples`, for a DataLoader's batch_sampler.

    share: () -> (rank, size), asked anew for each evaluation, so that one DataLoader serves through resizes.
    """

    def __init__(self, samples: int, batch_size: int, share: Callable[[], tuple[int, int]]) -> None:
        self._samples = samples
        self._batch_size = batch_size
        self._share = share

    def _indices(self) -> range:
        rank, size = self._share()
        return range(rank, self._samples, size)

    def __iter__(self) -> Iterator[list[int]]:
        """See the class; the last batch may be smaller."""
        indices = self._indices()
        for start in range(0, len(indices), self._batch_size):
            yield list(indices[start : start + self._batch_size])

    def __len__(self) -> int:
        """How many batches this rank evaluates."""
        return -(-len(self._indices()) // self._batch_size)


@torch.inference_mode()
def count_hits(model: nn.Module, batches: Iterable[Batch], forward: Callable[[Tensor], Tensor]) -> list[float]:
    """[images, hits among the best 1, hits among the best 5] over `batches`, in evaluation mode.

    forward: pixels as the DataLoader yields them -> logits [N, classes], through `model`, whose mode is restored.
    """
    was_training = model.training
    model.eval()
    counts = [0.0, 0.0, 0.0]
    for pixels, labels in batches:
        logits = forward(pixels)  # [N, classes]
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu()  # [N, 5]
        hits = best == labels[:, None]
        counts[0] += len(labels)
        counts[1] += int(hits[:, :1].sum())
        counts[2] += int(hits.sum())
    model.train(was_training)
    return counts


def average_batch_norm(model: nn.Module, size: int, sum_across: Callable[[list[float]], Sequence[float]]) -> None:
    """Give every rank the mean of all ranks' running statistics, so that all evaluate, and one saves, the same model.

    Each rank has seen other images, and few of them when there are many ranks. sum_across: adds a list over the ranks.
    """
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if size == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    mean = torch.tensor(sum_across(flat.tolist()), dtype=flat.dtype, device=flat.device) / size
    parts = torch.split(mean, [buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))
