"""A driver that fails where it is told to, for the tests of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from checkpoints.drivers.base import Driver, Entry, Reader, Writer
from checkpoints.errors import CheckpointUnavailable


class Crash(BaseException):
    """The process ends here: nothing in the code under test may handle it, and nothing works afterwards."""


class FaultDriver:
    """Wraps a driver; at the n-th operation (from 0) the process "dies".

    Args:
        inner: the driver that does the work.
        fail_at: number of the operation that fails; None never fails.
        after: whether the operation takes effect before the death; a write that dies before writes half.
        error: what is raised; a Crash keeps everything from working afterwards.
        lasting: whether every later operation raises it too.
    """

    def __init__(
        self,
        inner: Driver,
        fail_at: int | None = None,
        after: bool = False,
        error: Callable[[], BaseException] = Crash,
        lasting: bool = False,
    ) -> None:
        self.url = inner.url
        self.operations: list[str] = []
        self._inner = inner
        self._fail_at = fail_at
        self._after = after
        self._error = error
        self._lasting = lasting
        self._dead = False

    def step(self, name: str, effect: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        if self._dead:
            raise self._error()
        number = len(self.operations)
        self.operations.append(name)
        if number != self._fail_at:
            return effect()
        release((effect if self._after else half)())
        error = self._error()
        self._dead = self._lasting or isinstance(error, Crash)
        raise error

    def list_dir(self, path: str) -> list[Entry]:
        return self.step(f"list {path}", lambda: self._inner.list_dir(path))  # type: ignore[no-any-return]

    def info(self, path: str) -> Entry:
        return self.step(f"info {path}", lambda: self._inner.info(path))  # type: ignore[no-any-return]

    def open_read(self, path: str) -> Reader:
        return self.step(f"open {path}", lambda: self._inner.open_read(path))  # type: ignore[no-any-return]

    def open_write(self, path: str) -> Writer:
        return FaultWriter(self, self.step(f"create {path}", lambda: self._inner.open_write(path)), path)

    def write_once(self, path: str, data: bytes) -> None:
        self.step(f"write_once {path}", lambda: self._inner.write_once(path, data))

    def make_dirs(self, path: str) -> None:
        self.step(f"make_dirs {path}", lambda: self._inner.make_dirs(path))

    def remove(self, path: str) -> None:
        self.step(f"remove {path}", lambda: self._inner.remove(path))

    def remove_tree(self, path: str) -> None:
        self.step(f"remove_tree {path}", lambda: self._inner.remove_tree(path))

    def close(self) -> None:
        self._inner.close()


class FaultWriter:
    def __init__(self, driver: FaultDriver, inner: Writer, path: str) -> None:
        self._driver = driver
        self._inner = inner
        self._path = path

    def write(self, data: memoryview) -> None:
        half = data[: len(data) // 2]
        self._driver.step(f"write {self._path}", lambda: self._inner.write(data), lambda: self._inner.write(half))

    def commit(self) -> None:
        self._driver.step(f"commit {self._path}", self._inner.commit)

    def abort(self) -> None:
        try:
            self._driver.step(f"abort {self._path}", self._inner.abort)
        finally:
            release(self._inner)


def release(opened: Any) -> None:
    """Close the descriptor of a file that the "dead" process had open, and leave the file as it is."""
    close = getattr(opened, "_close", None) or getattr(opened, "close", None)
    if close is not None:
        close()


def outage() -> BaseException:
    return CheckpointUnavailable("the file system is away")
