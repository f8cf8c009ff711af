"""The arguments by which a student's script names its teachers, and the file of its losses."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from distill.arguments import DistillArguments, add_arguments, from_arguments, read_losses
from distill.errors import ConfigError
from distill.records import Normalisation


def parse(*argv: str, **environ: str) -> DistillArguments:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(argv), environ)


@pytest.mark.parametrize(
    ("argv", "environ", "use", "options"),
    [
        ((), {}, False, {}),
        (("--use_distill_service", "True"), {}, True, {}),
        (("--distill_teachers", "a:1,b:2"), {}, True, {"teachers": "a:1,b:2"}),
        (("--use_distill_service", "False", "--distill_teachers", "a:1"), {}, False, {"teachers": "a:1"}),
        (("--distill_service", "s", "--zookeeper", "zk:1"), {"EDL_ZOOKEEPER": "no:1"}, True,
         {"service": "s", "zookeeper": "zk:1", "root": "/edl"}),
        (("--distill_service", "s"), {"EDL_ZOOKEEPER": "job:1", "EDL_ZOOKEEPER_ROOT": "/r"}, True,
         {"service": "s", "zookeeper": "job:1", "root": "/r"}),
        ((), {"EDL_DISTILL_TEACHERS": "a:1"}, True, {}),
        (("--on_no_teacher", "hard_labels"), {}, False, {"on_no_teacher": "hard_labels"}),
    ],
)  # fmt: skip
def test_who_is_asked(argv: tuple[str, ...], environ: dict[str, str], use: bool, options: dict[str, Any]) -> None:
    found = parse(*argv, **environ)
    assert found.use is use
    assert found.reader_options() == {"on_no_teacher": "block", **options}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("--distill_teachers", "a:1", "--distill_service", "s"), "give one of them"),
        (("--distill_teachers", "a"), "must be host:port"),
        (("--distill_teachers", ","), "no teacher is named"),
    ],
)
def test_what_cannot_be_is_said(argv: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(*argv)


def test_only_true_and_false_are_truths(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--use_distill_service", "perhaps")
    assert "must be True or False, not 'perhaps'" in capsys.readouterr().err


def test_losses_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "losses.toml"
    file.write_text('losses = [{ type = "hard", weight = 0.1 }, { type = "kd", temperature = 4 }]')
    assert read_losses(file) == [{"type": "hard", "weight": 0.1}, {"type": "kd", "temperature": 4}]
    for text, sentence in (("losses = [", "is not TOML"), ("losses = 3", "must hold a list"), ("", "must hold a list")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=sentence):
            read_losses(file)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (Normalisation((0.5,), (57.12 / 255,)), True),
        (Normalisation((0.5, 0.5, 0.5), (0.224, 0.224, 0.224)), True),
        (Normalisation((127.5,), (57.12,), 1.0), True),
        (Normalisation((0.5,), (0.2241,)), False),
        (Normalisation((0.5, 0.5, 0.4), (0.224,)), False),
        (Normalisation((0.5,), (0.224,), 1.0), False),
        (None, False),
    ],
)
def test_the_same_normalisation_may_be_written_otherwise(other: Normalisation | None, same: bool) -> None:
    assert Normalisation((0.5,), (0.224,)).same_as(other) is same


def test_normalisations_of_other_channels_differ() -> None:
    assert not Normalisation((0.5, 0.5), (1.0,)).same_as(Normalisation((0.5, 0.5, 0.5), (1.0,)))
