"""The parts of the distillation examples that need no teacher: data, summary, losses, requests."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
import qps
import torch
from torch.utils.data import TensorDataset

import run
from digits import SHAPE, Shifted, normalised, split
from distill import losses, oip
from distill.errors import ConfigError
from distilling import ChannelsFirst, DistillCriterion, PlainCriterion, make_criterion
from options import parse_options
from students import Setting, images_of
from summary import differences, mean_of

NOWHERE = Path("/nowhere")


# ---- digits -----------------------------------------------------------------------------------------------------


def test_no_image_both_trains_and_tests() -> None:
    train, test = split()
    assert (len(train.labels), len(test.labels)) == (1000, 797)
    trained = {bytes(image.numpy().tobytes()) for image in train.pixels}
    tested = {bytes(image.numpy().tobytes()) for image in test.pixels}
    assert not trained & tested
    assert abs(float(normalised(train.pixels).mean())) < 0.01
    assert abs(float(normalised(train.pixels).std()) - 1) < 0.01


def test_an_image_moves_with_the_epoch_and_is_the_same_in_each_reading() -> None:
    train, _ = split()
    moved, again = (Shifted(train, seed=3) for _ in range(2))
    epochs = []
    for epoch in range(4):
        for dataset in (moved, again):
            dataset.set_epoch(epoch)
        images = torch.stack([moved[index][0] for index in range(20)])
        assert images.shape == (20, *SHAPE)
        assert torch.equal(images, torch.stack([again[index][0] for index in range(20)]))
        epochs.append(images)
    assert not any(torch.equal(a, b) for a in epochs for b in epochs if a is not b)
    still = Shifted(train, seed=3, shift=0)
    assert torch.equal(still[5][0], train.pixels[5])


def test_wrong_labels_are_as_many_as_asked_and_belong_to_the_seed() -> None:
    train, _ = split()
    clean, noisy = (images_of(train, Setting(images=1000, wrong_labels=share), 1) for share in (0.0, 0.5))
    assert torch.equal(clean.pixels, noisy.pixels), "the images do not depend on the labels"
    changed = float((clean.labels != noisy.labels).float().mean())
    assert 0.38 < changed < 0.52, "one guess in ten is right"
    assert torch.equal(noisy.labels, images_of(train, Setting(images=1000, wrong_labels=0.5), 1).labels)
    assert not torch.equal(noisy.pixels, images_of(train, Setting(images=1000), 2).pixels)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("--seeds 0", "--seeds must be at least 1"),
        ("--modes plain,remote", "--modes 'plain,remote' must be some of plain,in-process,service"),
        ("--images 1001", "more than the 1000"),
        ("--wrong_labels 1.5", "between 0 and 1"),
        ("--distill_teachers nowhere", "must be host:port"),
    ],
)
def test_wrong_arguments_end_with_one_line(argv: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(argv.split())
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


# ---- summary ------------------------------------------------------------------------------------------------------


def test_an_interval_is_student_s_t_of_the_seeds() -> None:
    assert mean_of([0.25]) == (0.25, None)
    mean, half = mean_of([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 * statistics.stdev([1.0, 2.0, 3.0]) / 3**0.5, rel=1e-6)
    assert mean_of([0.871, 0.873]).as_percent() == "87.20 ± 1.27"
    assert mean_of([0.0125]).as_percent("+") == "+1.25"


def test_differences_are_of_the_same_seeds() -> None:
    found = differences({"plain": [0.5, 0.7], "service": [0.6, 0.8]})
    assert list(found) == ["service - plain"]
    assert found["service - plain"].mean == pytest.approx(0.1)
    assert found["service - plain"].half == pytest.approx(0.0, abs=1e-9)


# ---- ResNet-50 ------------------------------------------------------------------------------------------------------


def resnet(*argv: str) -> object:
    return parse_options(["--data", "/images", *argv], {}, NOWHERE)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("--use_distill_service True", "needs --distill_teachers IP:PORT,... or --distill_service NAME"),
        ("--distill_teachers a:1 --label_smoothing 0.1", "goes into the file of --losses"),
        ("--distill_teachers a:1 --losses /nowhere/losses.toml", "is not a file"),
        ("--distill_teachers a:1 --distill_service s", "give one of them"),
    ],
)
def test_wrong_arguments_about_teachers(argv: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        resnet(*argv.split())
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_teachers_get_channels_first_and_the_network_what_it_had() -> None:
    pixels = torch.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3).to(torch.uint8)
    images = ChannelsFirst(TensorDataset(pixels, torch.tensor([3, 4])))  # type: ignore[arg-type]
    assert len(images) == 2
    first, label = images[1]
    assert (first.shape, int(label)) == ((3, 4, 4), 4)
    assert torch.equal(first.unsqueeze(0).permute(0, 2, 3, 1)[0], pixels[1])


def doubled(values: list[float]) -> Sequence[float]:
    """As if two ranks had the same."""
    return [2 * value for value in values]


def test_the_epoch_s_line_has_the_mean_of_each_loss_over_all_images() -> None:
    entries = [{"type": "hard", "weight": 0.5}, {"type": "soft", "weight": 2.0}]
    criterion = DistillCriterion(entries)
    assert criterion.means(doubled) == {"distill_hard": 0.0, "distill_soft": 0.0}
    generator = torch.Generator().manual_seed(0)
    hard, soft = 0.0, 0.0
    for rows in (4, 2):
        logits, teacher = (torch.randn(rows, 5, generator=generator) for _ in range(2))
        labels = torch.randint(0, 5, (rows,), generator=generator)
        loss = criterion(logits, labels, [teacher.half()])
        of_hard = losses.hard_cross_entropy(logits, labels)
        of_soft = losses.soft_cross_entropy(logits, teacher.half().softmax(1))
        assert float(loss) == pytest.approx(float(0.5 * of_hard + 2 * of_soft))
        hard, soft = hard + float(of_hard) * rows, soft + float(of_soft) * rows
    means = criterion.means(doubled)
    assert means == pytest.approx({"distill_hard": hard / 6, "distill_soft": soft / 6}, rel=1e-5)
    criterion.begin()
    assert criterion.means(doubled)["distill_hard"] == 0.0


def test_a_batch_without_answers_is_judged_by_its_labels() -> None:
    criterion = DistillCriterion([{"type": "hard"}, {"type": "soft"}])
    logits, labels, nothing = torch.randn(3, 5), torch.tensor([0, 1, 2]), torch.zeros(3, 5)
    loss = criterion(logits, labels, [nothing, torch.zeros(3, dtype=torch.bool)])
    assert float(loss) == pytest.approx(float(losses.hard_cross_entropy(logits, labels)))


def test_without_teachers_the_loss_is_the_plain_one() -> None:
    criterion = make_criterion(parse_options(["--data", "/i", "--label_smoothing", "0.1"], {}, NOWHERE))
    assert isinstance(criterion, PlainCriterion)
    logits, labels = torch.randn(3, 5), torch.tensor([0, 1, 2])
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(criterion(logits, labels, []), expected)
    assert criterion.means(doubled) == {}


# ---- requests a second ----------------------------------------------------------------------------------------------


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [qps.percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert qps.percentile([7.0], 0.5) == 7.0


def test_a_request_is_one_of_the_protocol() -> None:
    specs = (oip.TensorSpec("image", "UINT8", (-1, 3, 2, 2)), oip.TensorSpec("scale", "FP32", (-1, 1)))
    head, body, *tensors = qps.request_of(oip.ModelMetadata("net", specs), 5, "h:1", "secret")
    lines = bytes(head).decode().split("\r\n")
    assert lines[0] == "POST /v2/models/net/infer HTTP/1.1"
    assert "Authorization: Bearer secret" in lines
    assert f"Content-Length: {len(body) + 60 + 20}" in lines
    request = oip.decode_request(body, sum(map(len, tensors)))
    assert [(t.name, t.shape, t.binary_bytes) for t in request.inputs] == [
        ("image", (5, 3, 2, 2), 60),
        ("scale", (5, 1), 20),
    ]
    with pytest.raises(ConfigError, match="open shape"):
        qps.request_of(oip.ModelMetadata("net", (oip.TensorSpec("text", "INT64", (-1, -1)),)), 5, "h:1", None)


def test_sweeps_are_lists_of_whole_numbers() -> None:
    assert qps._numbers("1,2,32") == [1, 2, 32]
    for text in ("", "0", "1,x"):
        with pytest.raises(argparse.ArgumentTypeError):
            qps._numbers(text)
