"""Options of a DistillReader: a file over the script, the environment over the file, and nothing that cannot be."""

import pytest

from distill.errors import ConfigError
from distill.reader_options import ReaderOptions, override


def test_the_environment_wins_over_the_file_over_the_script() -> None:
    script = ReaderOptions(teachers="a:1", window=4, slot_mb=64)
    file = 'teachers = "b:1"\nwindow = 5\nno_teacher_timeout_s = 7\n'
    options = override(script, file, {"EDL_DISTILL_WINDOW": "6", "EDL_DISTILL_NOP": "yes", "EDL_JOB": "j"})
    assert options == ReaderOptions(
        teachers="b:1",
        zookeeper="127.0.0.1:2181",
        root="/edl",
        window=6,
        slot_mb=64,
        no_teacher_timeout_s=7.0,
        nop=True,
    )
    options.check()


def test_a_job_s_zookeeper_serves_unless_another_is_named() -> None:
    environ = {"EDL_ZOOKEEPER": "zk:1", "EDL_ZOOKEEPER_ROOT": "/r"}

    def places(options: ReaderOptions, environ: dict[str, str]) -> tuple[str | None, str | None]:
        found = override(options, None, environ)
        return found.zookeeper, found.root

    assert places(ReaderOptions(), environ) == ("zk:1", "/r")
    assert places(ReaderOptions(zookeeper="own:1"), environ) == ("own:1", "/r")
    assert places(ReaderOptions(zookeeper="own:1"), environ | {"EDL_DISTILL_ZOOKEEPER": "x:1"}) == ("x:1", "/r")
    assert "secret" not in repr(ReaderOptions(token="secret"))


def test_teachers_named_outside_replace_the_scripts_service_and_the_reverse() -> None:
    assert override(ReaderOptions(service="s"), None, {"EDL_DISTILL_TEACHERS": "a:1"}).service is None
    assert override(ReaderOptions(teachers="a:1"), None, {"EDL_DISTILL_SERVICE": "s"}).teachers is None


def test_the_token_of_the_teachers_serves_unless_another_is_named() -> None:
    environ = {"EDL_TEACHER_TOKEN": "t"}
    assert override(ReaderOptions(), None, environ).token == "t"
    assert override(ReaderOptions(token="own"), None, environ).token == "own"
    assert override(ReaderOptions(), None, environ | {"EDL_DISTILL_TOKEN": "x"}).token == "x"


@pytest.mark.parametrize(
    ("file", "environ", "says"),
    [
        ("window = ", {}, "not TOML"),
        ("colour = 1", {}, "unknown options of a DistillReader: colour"),
        (None, {"EDL_DISTILL_COLOUR": "1"}, "unknown options of a DistillReader: colour"),
        ('window = "many"', {}, "EDL_DISTILL_WINDOW='many' is no int"),
        ("window = true", {}, "window must be a int"),
        (None, {"EDL_DISTILL_NOP": "maybe"}, "is no bool"),
    ],
)
def test_what_cannot_be_read_is_named(file: str | None, environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        override(ReaderOptions(), file, environ)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "needs teachers"),
        ({"teachers": "a:1", "service": "s"}, "one of them"),
        ({"teachers": "a"}, "must be host:port"),
        ({"teachers": "a:1", "teacher_batch_size": 0}, "teacher_batch_size must be at least 1"),
        ({"service": "s", "max_teachers": 0}, "max_teachers must be at least 1"),
        ({"teachers": "a:1", "on_no_teacher": "cry"}, "on_no_teacher must be"),
        ({"teachers": "a:1", "no_teacher_timeout_s": -1.0}, "must not be negative"),
        ({"teachers": "a:1", "hedge_share": 1.5}, "hedge_share must be from 0 to 1"),
    ],
)
def test_what_cannot_work_is_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ReaderOptions(**options).check()  # type: ignore[arg-type]
