"""The example's images: layout, augmentation that a resize cannot change, errors that name the file, the digits."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import make_digits
from data import (
    CHANNEL_MEAN,
    CHANNEL_STD,
    CentreCrop,
    DataError,
    ImageFolder,
    RandomResizedCrop,
    ShiftRotate,
    open_split,
    to_input,
)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, so that a pixel tells where it came from."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8))


def write_images(root: Path, classes: tuple[str, ...] = ("cat", "ant"), each: int = 3) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            gradient(40 + number, 30).save(root / name / f"{number}.jpg", quality=95)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "train")


def test_classes_are_numbered_in_the_order_of_their_names(folder: Path) -> None:
    images = ImageFolder(folder, CentreCrop(16))
    assert images.classes == ["ant", "cat"]
    assert [images[i][1] for i in range(len(images))] == [0, 0, 0, 1, 1, 1]


def test_a_sample_is_small_until_it_reaches_the_device(folder: Path) -> None:
    pixels, _ = ImageFolder(folder, CentreCrop(16))[0]
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (16, 16, 3))


def test_augmentation_depends_on_seed_epoch_and_index_alone(folder: Path) -> None:
    def sample(seed: int, epoch: int, index: int) -> torch.Tensor:
        images = ImageFolder(folder, RandomResizedCrop(16), seed=seed)
        images.set_epoch(epoch)
        for other in range(index % 2):  # reading others first changes nothing
            images[other]
        return images[index][0]

    assert torch.equal(sample(1, 2, 3), sample(1, 2, 3))
    others = [sample(9, 2, 3), sample(1, 9, 3), sample(1, 2, 4)]
    assert not any(torch.equal(sample(1, 2, 3), other) for other in others)


def test_living_dataloader_workers_see_the_new_epoch(folder: Path) -> None:
    images = ImageFolder(folder, RandomResizedCrop(16))
    loader = DataLoader(images, batch_size=2, num_workers=1, persistent_workers=True)

    def read(epoch: int) -> torch.Tensor:
        images.set_epoch(epoch)
        return torch.cat([pixels for pixels, _ in loader])

    first, second = read(0), read(1)
    images.set_epoch(1)
    assert torch.equal(second, torch.stack([images[i][0] for i in range(len(images))]))
    assert not torch.equal(first, second)


def test_the_centre_crop_takes_the_centre() -> None:
    crop = np.asarray(CentreCrop(10, share=0.5)(gradient(200, 100), np.random.default_rng(0)), dtype=float)
    red, green = crop[..., 0], crop[..., 1]
    assert red.mean() == pytest.approx(127.5, abs=2)
    assert green.mean() == pytest.approx(127.5, abs=2)
    assert np.ptp(red) == pytest.approx(255 * 50 / 200, rel=0.15)
    assert np.ptp(green) == pytest.approx(255 * 50 / 100, rel=0.15)


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 40), (500, 20), (20, 500), (8, 8)])
def test_random_crops_stay_inside_and_keep_their_size(width: int, height: int) -> None:
    crop = RandomResizedCrop(12)
    flipped = 0
    for seed in range(40):
        pixels = np.asarray(crop(gradient(width, height), np.random.default_rng(seed)), dtype=float)
        assert pixels.shape == (12, 12, 3)
        assert pixels[..., 2].max() == 0  # nothing from outside the image
        flipped += pixels[6, 0, 0] > pixels[6, -1, 0]
    assert 5 <= flipped <= 35


def test_large_files_give_the_same_picture_though_they_are_decoded_small(tmp_path: Path) -> None:
    write_images(tmp_path / "a")
    path = tmp_path / "a" / "ant" / "0.jpg"
    gradient(1600, 1200).save(path, quality=95)
    whole = ImageFolder(tmp_path / "a", CentreCrop(32))[0][0].float()
    expected = gradient(1600, 1200).crop((200, 0, 1400, 1200)).resize((32, 32), Image.Resampling.BOX)
    assert (whole - torch.from_numpy(np.array(expected)).float()).abs().mean() < 3


def test_digits_are_shifted_and_turned_but_not_mirrored() -> None:
    transform = ShiftRotate(32, shift=0.1, degrees=10.0)
    samples = [np.asarray(transform(gradient(32, 32), np.random.default_rng(i)), dtype=float) for i in range(20)]
    inner = [sample[8:24, 8:24, 0] for sample in samples]
    assert all(sample[:, -1].mean() > sample[:, 0].mean() for sample in inner)
    assert len({sample.tobytes() for sample in samples}) == 20


def test_input_is_normalised_and_channels_last() -> None:
    pixels = torch.tensor(CHANNEL_MEAN).round().to(torch.uint8).expand(2, 5, 4, 3)
    images = to_input(pixels, torch.device("cpu"))
    assert images.shape == (2, 3, 5, 4)
    assert images.abs().max() < 0.5 / min(CHANNEL_STD) + 1e-6
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        ImageFolder(tmp_path / "nowhere", CentreCrop(8))


def test_a_folder_without_classes_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 0 class folders; a classifier needs at least 2"):
        ImageFolder(tmp_path, CentreCrop(8))


def test_classes_without_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 class folders but not one .jpg or .jpeg"):
        ImageFolder(write_images(tmp_path / "train", each=0), CentreCrop(8))


def test_train_and_val_must_have_the_same_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ("ant", "cat"))
    write_images(tmp_path / "val", ("ant", "dog"))
    with pytest.raises(DataError, match="different class folders, for example 'cat'"):
        open_split(tmp_path, size=8, augmentation="none", seed=0)


@pytest.mark.parametrize("damage", [b"no image at all", b""])
def test_an_unreadable_file_is_named(folder: Path, damage: bytes) -> None:
    (folder / "ant" / "1.jpg").write_bytes(damage)
    with pytest.raises(DataError, match=r"cannot decode .*ant/1\.jpg"):
        ImageFolder(folder, CentreCrop(8))[1]


def test_a_cut_off_file_is_named(folder: Path) -> None:
    path = folder / "ant" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"cannot decode .*ant/1\.jpg: .*truncated"):
        ImageFolder(folder, CentreCrop(8))[1]


def digests(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.jpg")}


def test_the_digits_are_all_there_split_by_file_and_class(tmp_path: Path) -> None:
    assert make_digits.main([str(tmp_path)]) == 0
    train, val = sorted((tmp_path / "train").rglob("*.jpg")), sorted((tmp_path / "val").rglob("*.jpg"))
    assert len(train) + len(val) == 1797
    assert not {p.name for p in train} & {p.name for p in val}
    in_train, in_val = Counter(p.parent.name for p in train), Counter(p.parent.name for p in val)
    assert len(in_train) == 10
    for name in in_train:
        assert in_val[name] / (in_val[name] + in_train[name]) == pytest.approx(0.2, abs=0.005)
    split = open_split(tmp_path, size=32, augmentation="shift_rotate", seed=0)
    assert (len(split.train), len(split.val)) == (len(train), len(val))


def test_the_digits_are_the_same_each_time_and_show_the_digit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_digits.write_digits(tmp_path / name, size=16, share=0.2)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    # The first of scikit-learn's digits is a zero: dark in its middle, bright around it.
    (zero,) = (tmp_path / "a").rglob("digit_0000.jpg")
    pixels = np.asarray(Image.open(zero), dtype=float)
    assert zero.parent.name == "0_zero"
    assert pixels[7:9, 7:9].mean() < 60 < pixels[:, 4:6].mean()


def test_no_training_image_is_held_out_as_well(tmp_path: Path) -> None:
    make_digits.write_digits(tmp_path, size=32, share=0.2)
    named = digests(tmp_path)
    train = {digest for name, digest in named.items() if name.startswith("train")}
    val = {digest for name, digest in named.items() if name.startswith("val")}
    assert not train & val


def test_files_that_are_not_quite_what_their_name_says_are_read(folder: Path) -> None:
    picture = gradient(40, 30)
    picture.convert("CMYK").save(folder / "ant" / "0.jpg")
    picture.save(folder / "ant" / "1.jpg", format="PNG")
    picture.convert("L").save(folder / "ant" / "2.jpg")
    (folder / "ant" / "notes.txt").write_text("no image")
    picture.save(folder / "ant" / "ä ö.JPEG", format="JPEG")
    images = ImageFolder(folder, CentreCrop(8))
    assert len(images) == 7
    assert all(images[index][0].shape == (8, 8, 3) for index in range(4))
