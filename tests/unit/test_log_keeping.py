"""Retention of logs: age, size, and what is never removed."""

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edl_collective.coord.clock import SystemClock
from jobclient.config import parse
from jobclient.log_keeping import QUIET_S, LogFile, LogKeeping, logs_in, to_remove

NOW = 10_000_000.0
DAY_S = 86400.0


def log(name: str, days: float, size_bytes: int = 10) -> LogFile:
    return LogFile(Path("logs/j") / name, size_bytes, NOW - days * DAY_S)


def test_the_old_go_and_then_the_oldest_until_the_rest_fits() -> None:
    files = [log("w3.log", 1), log("w1.log", 40), log("w2.log", 5), log("w4.log", 0.001)]
    assert to_remove(files, [], NOW, 30 * DAY_S, 0) == [files[1]]
    assert to_remove(files, [], NOW, 0, 25) == [files[1], files[2]]
    assert to_remove(files, [], NOW, 0, 0) == []
    assert to_remove(files, [files[1].path], NOW, 30 * DAY_S, 25) == [files[2], files[0]]


@given(
    st.lists(st.tuples(st.floats(0, 60), st.integers(0, 100), st.booleans()), max_size=12),
    st.sampled_from([0.0, DAY_S, 30 * DAY_S]),
    st.integers(0, 500),
)
def test_limits_are_kept_by_all_that_may_go_and_by_nothing_else(
    rows: list[tuple[float, int, bool]], keep_s: float, max_bytes: int
) -> None:
    files = [log(f"w{number}.log", days, size) for number, (days, size, _) in enumerate(rows)]
    in_use = {file.path for file, (_, _, used) in zip(files, rows, strict=True) if used}
    gone = to_remove(files, in_use, NOW, keep_s, max_bytes)
    left = [file for file in files if file not in gone]
    may_go = [file for file in left if file.path not in in_use and NOW - file.written_at >= QUIET_S]
    assert not {file.path for file in gone} & in_use
    assert all(NOW - file.written_at >= QUIET_S for file in gone)
    assert not keep_s or all(NOW - file.written_at <= keep_s for file in may_go)
    assert not max_bytes or not may_go or sum(file.size_bytes for file in left) <= max_bytes
    assert to_remove(left, in_use, NOW, keep_s, max_bytes) == []


def test_only_logs_of_workers_and_drivers_are_removed(tmp_path: Path) -> None:
    def old(path: str) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
        os.utime(file, (1.0, 1.0))
        return file

    ours = [old(f"j/{name}") for name in ("w1.log", "w2.log.old", "driver.log")] + [old("gone/w7.log")]
    in_use = old("j/w3.log")
    others = [old(p) for p in ("apt/term.log", "j/notes.txt", "j/w1.log.gz", "w4.log", "j/deep/w1.log", ".git/w1.log")]
    (tmp_path / "link").symlink_to(tmp_path / "j" / "deep")
    assert {file.path for file in logs_in(tmp_path)} == {*ours, in_use}
    LogKeeping(parse(["--log-dir", str(tmp_path)], {}), list, SystemClock()).sweep([in_use])
    assert [path for path in ours if path.exists()] == []
    assert [path for path in [in_use, *others] if not path.exists()] == []
    assert not (tmp_path / "gone").exists()
    assert list(logs_in(tmp_path / "not there")) == []
