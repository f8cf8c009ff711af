"""Models for tests, whose answers tell which sample they are for: `--model teacher_models:identity`.

The id of a sample stands in its first four pixels; the first four outputs are those pixels, exact in fp16.
"""

import threading
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ID_PIXELS = 4


def with_ids(pixels: np.ndarray[Any, np.dtype[np.uint8]], ids: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`pixels` [rows, ...] of uint8 with the ids written into them, in place."""
    flat = pixels.reshape(len(pixels), -1)
    flat[:, :ID_PIXELS] = np.asarray(ids, "<u4").reshape(-1, 1).view(np.uint8)
    return pixels


def ids_of(predictions: Any) -> list[int]:
    """The ids of the samples that predictions [rows, classes] are for."""
    values = np.asarray(predictions)[:, :ID_PIXELS].astype(np.uint8)
    return [int(value) for value in np.ascontiguousarray(values).view("<u4")[:, 0]]


class Identity(nn.Module):
    """Outputs [rows, classes]: the first pixels of each sample, then zeros; sleeps `delay_s` for each batch."""

    def __init__(self, classes: int = 10, delay_s: float = 0.0, seed: int = 0, fail_on: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.delay_s = delay_s
        self.fail_on = fail_on
        self.register_buffer("seed", torch.tensor(seed))  # another seed is another model hash

    def forward(self, image: Tensor) -> Tensor:
        if self.delay_s:
            time.sleep(self.delay_s)
        first = image.reshape(len(image), -1)[:, :ID_PIXELS].float()  # [rows, 4]
        if self.fail_on is not None and bool((first[:, 0] == self.fail_on).any()):
            raise ValueError(f"a sample begins with {self.fail_on}")
        return nn.functional.pad(first, (0, self.classes - ID_PIXELS))


def identity(**options: Any) -> nn.Module:
    return Identity(**options)


#: `gated` waits for it; set unless a test in the same process clears it
GATE = threading.Event()
GATE.set()


class Gated(Identity):
    """Waits for GATE before it answers."""

    def forward(self, image: Tensor) -> Tensor:
        assert GATE.wait(60.0)
        return super().forward(image)


def gated() -> nn.Module:
    return Gated()


class Zero(nn.Module):
    """Costs nothing: zeros [rows, classes] that lie ready."""

    def __init__(self, classes: int = 1000, most_rows: int = 256) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(most_rows, classes, dtype=torch.float16))

    def forward(self, image: Tensor) -> Tensor:
        return self.get_buffer("zeros")[: len(image)]


def zero(**options: Any) -> nn.Module:
    return Zero(**options)


def small(classes: int = 10, seed: int = 0) -> nn.Module:
    """A little convolutional network with batch norm and dropout, for images [3, 8, 8]."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 36, classes)
    )


class Named(nn.Module):
    """Two named outputs, one of them of integers."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        flat = image.float().flatten(1)
        return {"logits": flat[:, :5], "best": flat.argmax(1, keepdim=True)}


def named() -> nn.Module:
    return Named()


class Stubborn(nn.Module):
    """Drops out whatever it is told, as a model does that calls functional.dropout without `training`."""

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.dropout(image.float().flatten(1), 0.5, training=True)


def stubborn() -> nn.Module:
    return Stubborn()


class Summed(nn.Module):
    """Forgets the batch."""

    def forward(self, image: Tensor) -> Tensor:
        return image.float().flatten(1).sum(0)


def summed() -> nn.Module:
    return Summed()


def number() -> int:
    return 7
