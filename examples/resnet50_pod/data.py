"""Images from an ImageNet-layout folder, decoded and augmented in DataLoader workers.

A sample is uint8 [size, size, 3] until it reaches the training device: a quarter of the memory and of the copying.
Augmentation is a function of (seed, epoch, index) alone: whichever rank or DataLoader worker reads a sample after a
resize, it gets the same pixels. This module does not choose which samples a rank reads; the sampler does.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

SUFFIXES = frozenset({".jpg", ".jpeg"})
#: Mean and standard deviation of ImageNet's channels, on the scale of 0 to 255.
CHANNEL_MEAN = (123.675, 116.28, 103.53)
CHANNEL_STD = (58.395, 57.12, 57.375)

#: A decoded image and the sample's random generator -> RGB of the final size.
Transform = Callable[[Image.Image, np.random.Generator], Image.Image]


#: Pixels uint8 [size, size, 3] and the class index.
Sample = tuple[Tensor, int]
#: pixels uint8 [batch, size, size, 3] and class indices int64 [batch]
Batch = tuple[Tensor, Tensor]


class DataError(Exception):
    """Raised when the images are missing, badly laid out or unreadable; the message names the path."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """ImageNet's augmentation: a random rectangle, resized to `size` x `size`, mirrored half of the time.

    The rectangle has 8 % to 100 % of the area and an aspect ratio of 3/4 to 4/3 (Szegedy et al., arXiv 1409.4842).
    """

    size: int
    smallest_area: float = 0.08
    widest_ratio: float = 4 / 3

    def __call__(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """See the class."""
        crop = _read_box(image, self._box(image.width, image.height, random), self.size)
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop

    def _box(self, width: int, height: int, random: np.random.Generator) -> tuple[float, float, float, float]:
        for _ in range(10):
            area = random.uniform(self.smallest_area, 1.0) * width * height
            ratio = math.exp(random.uniform(-1.0, 1.0) * math.log(self.widest_ratio))
            w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if w <= width and h <= height:
                left, top = random.uniform(0.0, width - w), random.uniform(0.0, height - h)
                return left, top, left + w, top + h
        return _centre_box(width, height, 1.0)


@dataclass(frozen=True)
class ShiftRotate:
    """For digits, which a mirror or a small crop would make unreadable: a small random shift and rotation.

    shift: of the side, at most; degrees: at most, both ways. What comes in from outside is black.
    """

    size: int
    shift: float = 0.08
    degrees: float = 10.0

    def __call__(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """See the class."""
        image = _read_box(image, _centre_box(image.width, image.height, 1.0), self.size)
        x, y = random.uniform(-self.shift, self.shift, 2) * self.size
        angle = random.uniform(-self.degrees, self.degrees)
        return image.rotate(angle, Image.Resampling.BILINEAR, translate=(x, y))


@dataclass(frozen=True)
class CentreCrop:
    """For evaluation: the central square with `share` of the shorter side, resized to `size` x `size`."""

    size: int
    share: float = 1.0

    def __call__(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """See the class; nothing here is random."""
        del random
        return _read_box(image, _centre_box(image.width, image.height, self.share), self.size)


def _centre_box(width: int, height: int, share: float) -> tuple[float, float, float, float]:
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _read_box(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Image.Image:
    """Decode `box` of a lazily opened image into `size` x `size` RGB."""
    left, top, right, bottom = box
    full_width, full_height = image.size
    # JPEG can be decoded at 1/2, 1/4 or 1/8 for a fraction of the cost; draft picks the smallest that is large enough.
    shrink = min(right - left, bottom - top) / size
    if shrink >= 2:
        image.draft("RGB", (int(full_width / shrink), int(full_height / shrink)))
    sx, sy = image.width / full_width, image.height / full_height
    scaled = (left * sx, top * sy, min(right * sx, image.width), min(bottom * sy, image.height))
    return image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=scaled)


class ImageFolder(Dataset[Sample]):
    """JPEG files in <root>/<class>/; a class's index is the position of its folder's name in sorted order.

    A sample is (pixels uint8 [size, size, 3], class index). Call set_epoch() before each epoch; it also reaches
    DataLoader workers that live through several epochs. Raises DataError when `root` is missing or has no classes or
    no images, and later when a file cannot be decoded.
    """

    def __init__(self, root: Path, transform: Transform, *, seed: int = 0) -> None:
        self.root = root
        self.classes = _class_names(root)
        self._transform = transform
        self._seed = seed
        names = [_image_names(root / name) for name in self.classes]
        # Arrays, not lists: a million small objects would be copied page by page into every DataLoader worker.
        self._labels = np.repeat(np.arange(len(names)), [len(in_class) for in_class in names])
        self._names = np.array([name for in_class in names for name in in_class], dtype=np.bytes_)
        if not len(self._names):
            raise DataError(f"{root} has {len(self.classes)} class folders but not one .jpg or .jpeg file in them")
        # In shared memory: persistent DataLoader workers hold a copy of this object, but see the same epoch.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Augment for `epoch` from the next sample on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """See the class."""
        label = int(self._labels[index])
        path = self.root / self.classes[label] / os.fsdecode(self._names[index])
        random = np.random.default_rng((self._seed, int(self._epoch), index))
        try:
            # PNG as well: one of ImageNet's .JPEG files is none.
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                pixels = np.array(self._transform(image, random))
        except (OSError, Image.DecompressionBombError) as error:
            raise DataError(f"cannot decode {path}: {error}") from error
        return torch.from_numpy(pixels), label


def _image_names(folder: Path) -> list[bytes]:
    """Sorted, so that an image's index is the same on every node."""
    return sorted(os.fsencode(name) for name in os.listdir(folder) if Path(name).suffix.lower() in SUFFIXES)


def _class_names(root: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: it should hold one folder of JPEG files for each class")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if len(names) < 2:
        raise DataError(f"{root} has {len(names)} class folders; a classifier needs at least 2")
    return names


@dataclass(frozen=True)
class Split:
    """The images of a data set: `train` augmented, `val` as they are, with the same classes in the same order."""

    train: ImageFolder
    val: ImageFolder


def open_split(root: Path, *, size: int, augmentation: str, seed: int) -> Split:
    """Open <root>/train and <root>/val for images of `size` x `size` pixels.

    augmentation: a key of AUGMENTATIONS. Raises DataError as ImageFolder does, and when the two have different classes.
    """
    train_transform, val_transform = AUGMENTATIONS[augmentation](size)
    train = ImageFolder(root / "train", train_transform, seed=seed)
    val = ImageFolder(root / "val", val_transform, seed=seed)
    if train.classes != val.classes:
        different = sorted(set(train.classes) ^ set(val.classes))
        raise DataError(f"{root}: train and val have different class folders, for example {different[0]!r}")
    return Split(train, val)


def _for_photos(size: int) -> tuple[Transform, Transform]:
    return RandomResizedCrop(size), CentreCrop(size, share=224 / 256)


def _for_digits(size: int) -> tuple[Transform, Transform]:
    return ShiftRotate(size), CentreCrop(size)


def _for_none(size: int) -> tuple[Transform, Transform]:
    return CentreCrop(size), CentreCrop(size)


#: Transforms (training, evaluation) for a final size: photographs as ImageNet does, digits, or none at all.
AUGMENTATIONS: dict[str, Callable[[int], tuple[Transform, Transform]]] = {
    "crop_flip": _for_photos,
    "shift_rotate": _for_digits,
    "none": _for_none,
}


def to_input(pixels: Tensor, device: torch.device) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] on `device`, normalised, channels last in memory."""
    moved = pixels.to(device, non_blocking=True)
    mean = torch.tensor(CHANNEL_MEAN, device=device)
    std = torch.tensor(CHANNEL_STD, device=device)
    return ((moved - mean) / std).permute(0, 3, 1, 2)  # [N, H, W, 3] -> [N, 3, H, W], a view
