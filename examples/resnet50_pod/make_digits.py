"""Write scikit-learn's digits, 1,797 real images of handwriting, as an ImageNet-layout folder of JPEG files.

The folder gets train/<class>/*.jpg and val/<class>/*.jpg. The split is made here, by file, before any training: a fixed
share of each class, so that it is stratified and the same on every machine. Nothing is downloaded: the images come
with scikit-learn. An existing folder is completed or overwritten file by file with the same bytes.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

#: Fixed: the split belongs to the data set, not to a training run.
SPLIT_SEED = 1797
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def held_out(labels: list[int], share: float) -> set[int]:
    """The indices of the images that are never trained on: `share` of each class, rounded to the nearest file."""
    chosen: set[int] = set()
    for label in sorted(set(labels)):
        members = [index for index, other in enumerate(labels) if other == label]
        random.Random(SPLIT_SEED + label).shuffle(members)
        chosen.update(members[: round(len(members) * share)])
    return chosen


def write_digits(root: Path, *, size: int, share: float) -> tuple[int, int]:
    """Write the images, `size` x `size` pixels each, and return how many went to train and to val."""
    digits = load_digits()
    labels = [int(label) for label in digits.target]
    val = held_out(labels, share)
    for index, (pixels, label) in enumerate(zip(digits.images, labels, strict=True)):
        # A digit is also its name's prefix, so that the sorted folders are in the order of the digits.
        folder = root / ("val" if index in val else "train") / f"{label}_{CLASS_NAMES[label]}"
        folder.mkdir(parents=True, exist_ok=True)
        _image(pixels, size).save(folder / f"digit_{index:04d}.jpg", quality=95)
    return len(labels) - len(val), len(val)


def _image(pixels: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", size: int) -> Image.Image:
    """8 x 8 grey values from 0 to 16 -> `size` x `size` from 0 to 255."""
    grey = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8))
    return grey.resize((size, size), Image.Resampling.BICUBIC)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path, help="the folder to write train/ and val/ into")
    parser.add_argument("--size", type=int, default=32, help="side of an image in pixels (default %(default)s)")
    parser.add_argument("--held_out", type=float, default=0.2, help="share of each class for val (default %(default)s)")
    args = parser.parse_args(argv)
    if args.size < 8:
        parser.error(f"--size must be at least 8 pixels, not {args.size}")
    if not 0 < args.held_out < 1:
        parser.error(f"--held_out must be between 0 and 1, not {args.held_out}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Write the folder and say what was written; exit code 1 with one line when the folder cannot be written."""
    args = _arguments(argv)
    try:
        train, val = write_digits(args.root, size=args.size, share=args.held_out)
    except OSError as error:
        print(f"make_digits: cannot write {args.root}: {error}", file=sys.stderr)
        return 1
    print(f"{args.root}: {train} images to train on, {val} held out, {len(CLASS_NAMES)} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
