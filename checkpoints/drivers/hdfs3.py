"""The driver for sites that stay with the hdfs3 package (0.3.1, its last) and its native library libhdfs3.so.

URLs and their options are those of `location`; hdfs3 itself reads HADOOP_CONF_DIR when it is imported.

Invariants, each against a trap of that package (read in its source; its native library is in no package index):
- It asks `collections` for what Python 3.10 took out. It gets that while it is imported, in its own namespace; the
  module `collections` is never changed.
- `exists()` and everything built on it answers "no" during an outage, and a listing that fails is empty: what is said
  to be absent is believed only while "/" is seen.
- Closing ignores errors, so the size is looked up afterwards.
- It does not survive a fork: a child gets an error.
"""

from __future__ import annotations

import builtins
import collections.abc
import importlib
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any, TypeVar

from checkpoints.drivers.base import Entry, translated
from checkpoints.drivers.bounded import CALL_TIMEOUT_S, within
from checkpoints.drivers.location import parse_location, split_host
from checkpoints.errors import (
    CheckpointError,
    CheckpointExists,
    CheckpointNotFound,
    CheckpointUnavailable,
    CheckpointUnsupported,
)

T = TypeVar("T")

#: Names and units (milliseconds) are libhdfs3's own; its defaults wait for ten minutes.
FAIL_FAST = {
    "rpc.client.connect.retry": "2",
    "rpc.client.connect.timeout": "5000",
    "rpc.client.timeout": "30000",
    "dfs.client.failover.max.attempts": "4",
}


class Hdfs3Driver:
    """A folder on HDFS, reached through hdfs3.

    Args:
        url: see `location`.
        call_timeout_s: longest wait for one call; the URL's `timeout` goes before it.

    Raises:
        CheckpointUnsupported: if the package or its native library is missing, or the URL does not parse.
    """

    def __init__(self, url: str, call_timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.url = url
        self._location = parse_location(url)
        self._call_timeout_s = self._location.timeout_s or call_timeout_s
        self._hdfs3 = _package(url)
        self._file_system: Any = None
        self._pid = -1

    def _path(self, path: str) -> str:
        return f"{self._location.path}/{path}" if path else (self._location.path or "/")

    def _here(self) -> Any:
        if self._file_system is None:
            self._file_system, self._pid = self._connect(), os.getpid()
        if self._pid != os.getpid():
            raise CheckpointUnsupported(
                f"{self.url}: this process was forked from {self._pid}, where hdfs3 is at work, "
                "which it does not survive; start processes with spawn, or use driver=hdfs-native",
                url=self.url,
            )
        return self._file_system

    def _connect(self) -> Any:
        location = self._location
        given: dict[str, Any] = {}
        if location.hosts:
            given["host"], given["port"] = split_host(location.authority)
        user = location.user or os.environ.get("HADOOP_USER_NAME")
        if user:
            given["user"] = user
        return self._hdfs3.HDFileSystem(pars={**FAIL_FAST, **location.settings()}, **given)

    def call(self, operation: str, path: str, what: Callable[[Any, str], T]) -> T:
        """Run `what(file system, full path)` in time; "not found" is believed while the root is seen."""
        full = self._path(path)
        with translated(operation, full):
            try:
                return within(self._call_timeout_s, lambda: what(self._here(), full))
            except FileNotFoundError:
                self._check_alive(operation, full)
                raise

    def _check_alive(self, operation: str, full: str) -> None:
        if not within(self._call_timeout_s, lambda: self._here().exists("/")):
            raise CheckpointUnavailable(
                f"cannot {operation} {full}: the NameNode does not answer", url=full, operation=operation
            )

    def list_dir(self, path: str) -> list[Entry]:
        """See Driver."""
        found = self.call("list", path, lambda fs, p: [_entry(row) for row in fs.ls(p, True)])
        if not found:
            self.info(path)
        return found

    def info(self, path: str) -> Entry:
        """See Driver."""
        return self.call("look at", path, lambda fs, p: _entry(fs.info(p)))

    def open_read(self, path: str) -> Hdfs3Reader:
        """See Driver."""
        self.info(path)
        return Hdfs3Reader(self, self.call("read", path, lambda fs, p: fs.open(p, "rb")), path)

    def open_write(self, path: str) -> Hdfs3Writer:
        """See Driver."""
        self._refuse_existing(path)
        self.info(path.rpartition("/")[0])
        replication, block_size = self._location.replication or 0, self._location.block_size_bytes or 0

        def create(fs: Any, full: str) -> Any:
            return fs.open(full, "wb", replication=replication, block_size=block_size)

        return Hdfs3Writer(self, self.call("write", path, create), path)

    def write_once(self, path: str, data: bytes) -> None:
        """See Driver."""
        folder, _, name = path.rpartition("/")
        whole = f"{folder}/.{name}.{secrets.token_hex(4)}".lstrip("/")
        self._refuse_existing(path)
        writer = self.open_write(whole)
        try:
            writer.write(memoryview(data))
            writer.commit()
            moved = self.call("write", path, lambda fs, p: fs.mv(self._path(whole), p))
            if not moved:
                self._refuse_existing(path)
                raise CheckpointUnavailable(f"cannot write {self._path(path)}: the rename was refused", url=self.url)
        except BaseException:
            writer.abort()
            raise

    def make_dirs(self, path: str) -> None:
        """See Driver."""
        self.call("make the folder", path, lambda fs, p: fs.makedirs(p, mode=0o755))

    def remove(self, path: str) -> None:
        """See Driver."""
        self._remove(path, recursive=False)

    def remove_tree(self, path: str) -> None:
        """See Driver."""
        self._remove(path, recursive=True)

    def close(self) -> None:
        """See Driver."""
        file_system, self._file_system = self._file_system, None
        if file_system is not None and self._pid == os.getpid():
            file_system.disconnect()

    def _remove(self, path: str, *, recursive: bool) -> None:
        with suppress(CheckpointNotFound):
            self.call("remove", path, lambda fs, p: fs.rm(p, recursive=recursive))

    def _refuse_existing(self, path: str) -> None:
        with suppress(CheckpointNotFound):
            self.info(path)
            raise CheckpointExists(f"{self._path(path)} is there already", url=self._path(path))


class Hdfs3Writer:
    """A new file on HDFS; see Writer."""

    def __init__(self, driver: Hdfs3Driver, file: Any, path: str) -> None:
        self._driver = driver
        self._file = file
        self._path = path
        self._written_bytes = 0

    def write(self, data: memoryview) -> None:
        """See Writer."""
        # hdfs3 knows no memoryviews that are not of bytes; the copy is of one chunk.
        self._driver.call("write", self._path, lambda _fs, _path: self._file.write(bytes(data)))
        self._written_bytes += len(data)

    def commit(self) -> None:
        """See Writer."""
        self._driver.call("write", self._path, lambda _fs, _path: self._file.close())
        stored = self._driver.info(self._path).size_bytes
        if stored != self._written_bytes:
            raise CheckpointUnavailable(
                f"cannot write {self._path}: {stored} of {self._written_bytes} bytes arrived", operation="write"
            )

    def abort(self) -> None:
        """See Writer."""
        with suppress(CheckpointError):
            self._driver.remove(self._path)
        with suppress(CheckpointError):
            self._driver.call("close", self._path, lambda _fs, _path: self._file.close())


class Hdfs3Reader:
    """A file on HDFS being read; see Reader."""

    def __init__(self, driver: Hdfs3Driver, file: Any, path: str) -> None:
        self._driver = driver
        self._file = file
        self._path = path

    def readinto(self, buffer: memoryview) -> int:
        """See Reader."""
        data: bytes = self._driver.call("read", self._path, lambda _fs, _path: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """See Reader."""
        with suppress(CheckpointError):
            self._driver.call("close", self._path, lambda _fs, _path: self._file.close())


def _entry(row: dict[str, Any]) -> Entry:
    is_dir = row["kind"] == "directory"
    return Entry(row["name"].rstrip("/").rpartition("/")[2], is_dir, 0 if is_dir else int(row["size"]))


def _package(url: str) -> Any:
    try:
        package = _import_package()
    except ImportError as error:
        raise CheckpointUnsupported(
            f"{url} with driver=hdfs3 needs the hdfs3 package ({error}): pip install 'edl-elastic[hdfs3]'", url=url
        ) from error
    try:
        importlib.import_module("hdfs3.lib")
    except (ImportError, OSError, AttributeError) as error:
        raise CheckpointUnsupported(
            f"{url} with driver=hdfs3 needs the native library libhdfs3.so, which pip does not bring: put it on "
            "LD_LIBRARY_PATH, or use driver=hdfs-native, which needs none",
            url=url,
        ) from error
    return package


def _import_package() -> Any:
    """The package hdfs3; its one module that cannot be imported any more is put in its place first."""
    if "hdfs3" in sys.modules:
        return sys.modules["hdfs3"]
    package = find_spec("hdfs3")
    if package is None or not package.submodule_search_locations:
        raise ImportError("it is not installed")
    name = "hdfs3.mapping"
    sys.modules[name] = _with_old_collections(name, package.submodule_search_locations)
    try:
        return importlib.import_module("hdfs3")
    except BaseException:
        sys.modules.pop(name, None)
        raise


def _with_old_collections(name: str, folders: Any) -> Any:
    """A module that finds the classes of `collections.abc` when it imports `collections`; nobody else does."""
    spec = PathFinder.find_spec(name, folders)
    if spec is None or spec.loader is None:
        raise ImportError(f"the package has no {name}")

    def old_import(wanted: str, *arguments: Any, **more: Any) -> Any:
        return collections.abc if wanted == "collections" else builtins.__import__(wanted, *arguments, **more)

    module = module_from_spec(spec)
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": old_import}
    spec.loader.exec_module(module)
    return module
