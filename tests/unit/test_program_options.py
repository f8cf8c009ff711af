"""Options that JobClient and JobServer share: what cannot work is one line that names the option, and exit code 2."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from jobclient.__main__ import main as client
from jobclient.options import ConfigError, check_positive, merged
from jobserver.__main__ import main as server

Program = Callable[[Sequence[str]], int]


def run_client(argv: Sequence[str]) -> int:
    return client(argv, {})


@pytest.mark.parametrize("program", [run_client, server])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--zookeeper-acl", "closed"),
        ("--tls", "perhaps"),
        ("--zookeeper", "nowhere"),
        ("--session-timeout", "soon"),
        ("--session-timeout", "inf"),
        ("--zookeeper-root", "no-slash"),
        ("--config", "missing.toml"),
    ],
)
def test_a_value_that_cannot_work_is_one_line(
    program: Program, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program([option, value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{option}" in line


def test_each_source_beats_the_one_below_it(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('a = "file"\nb = "file"\nc-c = "file"\n')
    environ = {"EDL_CONFIG": str(file), "EDL_B": "own", "EDL_A": "own", "OLD_B": "alias", "OLD_D": "alias"}
    names, aliases = ["a", "b", "c_c", "d"], {"OLD_B": "b", "OLD_D": "d"}
    line: dict[str, object] = {"config": None, "a": "line", "b": None, "c_c": None, "d": None}
    assert merged(names, line, environ, aliases) == {"a": "line", "b": "own", "c_c": "file", "d": "alias"}


def test_a_file_with_an_unknown_option_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("colour = 1\n")
    with pytest.raises(ConfigError, match="sets 'colour', which is not an option"):
        merged(["a"], {"config": str(file)}, {})


def test_a_field_is_named_as_its_option() -> None:
    class Settings:
        long_wait_s = -1.0

    with pytest.raises(ConfigError, match="--long-wait is -1: it must be positive"):
        check_positive(Settings(), ["long_wait_s"])
