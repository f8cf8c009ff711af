"""scikit-learn's digits, 1,797 real images of handwriting, as uint8 pixels: what teacher and students learn from.

Nothing is downloaded: the images come with scikit-learn. The split is fixed here, before any training, and is the same
on every machine. Augmentation depends on the seed, the epoch and the index alone: all modes see the same pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset

CLASSES = 10
#: of one sample, [channels, height, width]
SHAPE = (1, 8, 8)
#: of the pixels / 255 of the training images
MEAN, STD = 0.305, 0.376
TEST_IMAGES = 797
SPLIT_SEED = 1797


class Images(NamedTuple):
    """Pixels uint8 [N, 1, 8, 8] and labels int64 [N]."""

    pixels: Tensor
    labels: Tensor

    def part(self, indices: Tensor) -> "Images":
        """Those of `indices` [n]."""
        return Images(self.pixels[indices], self.labels[indices])


def split() -> tuple[Images, Images]:
    """1,000 images to train on, and 797 that only ever test."""
    digits = load_digits()
    grey = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))  # [1797, 8, 8], 0..255
    every = Images(grey.unsqueeze(1), torch.from_numpy(digits.target).long())
    order = torch.randperm(len(every.labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    return every.part(order[TEST_IMAGES:]), every.part(order[:TEST_IMAGES])


def normalised(pixels: Tensor) -> Tensor:
    """uint8 [N, 1, 8, 8] -> float32, as the teacher server does it by --mean and --std."""
    return (pixels.float() / 255 - MEAN) / STD


class Shifted(Dataset[tuple[Tensor, Tensor]]):
    """Images that move by at most `shift` pixels each way, anew in each epoch; what comes in from outside is black.

    A sample is (pixels uint8 [1, 8, 8], label int64 []).
    """

    def __init__(self, images: Images, *, seed: int, shift: int = 1) -> None:
        self._images, self._seed, self._shift = images, seed, shift
        # In shared memory: a DataLoader's processes hold a copy of this object, but see the same epoch.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Move the images as in `epoch` from the next sample on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._images.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """See the class."""
        pixels, label = self._images.pixels[index], self._images.labels[index]
        reach = self._shift
        if not reach:
            return pixels, label
        y, x = np.random.default_rng((self._seed, int(self._epoch), index)).integers(0, 2 * reach + 1, 2)
        padded = torch.nn.functional.pad(pixels, (reach,) * 4)  # [1, 8 + 2 reach, 8 + 2 reach]
        return padded[:, y : y + SHAPE[1], x : x + SHAPE[2]], label
