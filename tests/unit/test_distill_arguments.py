"""The arguments by which a student's script names its teachers, and the file of its losses."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from distill.arguments import DistillArguments, add_arguments, from_arguments, read_losses
from distill.errors import ConfigError


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
