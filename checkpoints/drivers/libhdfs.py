"""The driver for HDFS through libhdfs and a JVM: pyarrow's HadoopFileSystem, for sites with a Hadoop install.

URLs and their options are those of `location`; what the environment must hold is in `hadoop_env`.

Invariants, each against a trap of this client (seen with Hadoop 2.7.4):
- Absence is believed only after a listing said so: `get_file_info` answers "not found" for a dead NameNode, too.
- A call ends within its timeout, and a dead NameNode fails within seconds.
- A process that forked after its JVM was started gets an error instead of a JVM that hangs.
- Replication is what the URL or the cluster's configuration says; pyarrow's own default is 3.
- A name is written once: a plain rename replaces, a rename into a folder does not.
It cannot ask the DataNodes to sync their disks; hdfs-native can.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from checkpoints.drivers.base import Entry, translated
from checkpoints.drivers.bounded import CALL_TIMEOUT_S, within
from checkpoints.drivers.hadoop_env import prepare
from checkpoints.drivers.location import parse_location, split_host
from checkpoints.errors import (
    CheckpointError,
    CheckpointExists,
    CheckpointLeaseLost,
    CheckpointNotFound,
    CheckpointQuota,
    CheckpointUnavailable,
    CheckpointUnsupported,
)

T = TypeVar("T")

#: Hadoop's own defaults wait ten times one second for a refused connection and 45 times 20 s for a silent one.
FAIL_FAST = {
    "ipc.client.connect.max.retries": "2",
    "ipc.client.connect.retry.interval": "200",
    "ipc.client.connect.timeout": "5000",
    "ipc.client.connect.max.retries.on.timeouts": "1",
    "dfs.client.failover.max.attempts": "4",
    "dfs.client.failover.sleep.base.millis": "50",
    "dfs.client.failover.sleep.max.millis": "500",
}
#: What libhdfs says when it has no number for a Java exception: 255, and EIO for "false".
_OPAQUE = (255, errno.EIO)

#: The process that started a JVM, shared with forked children; None while none was started.
_jvm_pid: int | None = None


class LibhdfsDriver:
    """A folder on HDFS, reached through a JVM.

    Args:
        url: see `location`.
        call_timeout_s: longest wait for one call; the URL's `timeout` goes before it.

    Raises:
        CheckpointUnsupported: if pyarrow, a JVM, libhdfs.so or Hadoop's classes are missing, or the URL does not parse.
    """

    def __init__(self, url: str, call_timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.url = url
        self._location = parse_location(url)
        self._call_timeout_s = self._location.timeout_s or call_timeout_s
        self._arrow = _package(url)
        prepare(os.environ)
        self._file_system: Any = None

    def _path(self, path: str) -> str:
        return f"{self._location.path}/{path}" if path else (self._location.path or "/")

    def _here(self) -> Any:
        """The file system, connected at its first use."""
        global _jvm_pid
        if _jvm_pid not in (None, os.getpid()):
            raise CheckpointUnsupported(
                f"{self.url}: this process was forked after its parent {_jvm_pid} had started a JVM, which does not "
                "survive that; start processes with spawn, or use driver=hdfs-native",
                url=self.url,
            )
        if self._file_system is None:
            _jvm_pid = os.getpid()
            self._file_system = self._connect()
        return self._file_system

    def _connect(self) -> Any:
        location = self._location
        if location.hosts:
            host, port = split_host(location.authority)
        else:
            host, port = "default", None
        try:
            return self._arrow.HadoopFileSystem(
                host,
                port or 0,
                user=location.user or os.environ.get("HADOOP_USER_NAME"),
                replication=location.replication or 0,
                default_block_size=location.block_size_bytes,
                extra_conf={**FAIL_FAST, **location.settings()},
            )
        except OSError as error:
            kind = CheckpointUnsupported if "Unable to load" in str(error) else CheckpointUnavailable
            raise kind(
                f"cannot use {self.url}: {error} (check HADOOP_CONF_DIR, CLASSPATH, JAVA_HOME and ARROW_LIBHDFS_DIR)",
                url=self.url,
            ) from error

    def call(self, operation: str, path: str, what: Callable[[Any, str], T]) -> T:
        """Run `what(file_system, full path)` in time, its errors explained."""
        full = self._path(path)
        with translated(operation, full):
            file_system = within(self._call_timeout_s, self._here)
            try:
                return within(self._call_timeout_s, lambda: what(file_system, full))
            except OSError as error:
                explained = self._explained(error, operation, full)
                if explained is not None:
                    raise explained from error
                raise

    def list_dir(self, path: str) -> list[Entry]:
        """See Driver."""
        try:
            found = self.call("list", path, lambda fs, p: fs.get_file_info(self._arrow.FileSelector(p)))
        except CheckpointUnavailable:
            if not self.info(path).is_dir:
                raise CheckpointNotFound(f"{self._path(path)} is a file, not a folder", url=self._path(path)) from None
            raise
        return [self._entry(info) for info in found]

    def info(self, path: str) -> Entry:
        """See Driver."""
        found = self.call("look at", path, lambda fs, p: fs.get_file_info(p))
        if found.type is self._arrow.FileType.NotFound:
            # Silent where opening it would print a stack trace; raises CheckpointNotFound, or what is the matter.
            self.call("look at", path, lambda fs, p: fs.get_file_info(self._arrow.FileSelector(p)))
            return Entry(path.rpartition("/")[2], True, 0)  # a folder that was made meanwhile
        return self._entry(found)

    def open_read(self, path: str) -> LibhdfsReader:
        """See Driver."""
        if self.info(path).is_dir:
            raise CheckpointNotFound(f"{self._path(path)} is a folder", url=self._path(path))
        return LibhdfsReader(self, self.call("read", path, lambda fs, p: fs.open_input_file(p)), path)

    def open_write(self, path: str) -> LibhdfsWriter:
        """See Driver."""
        self._refuse_existing(path)
        self.info(path.rpartition("/")[0])  # creating a file would make its folder as well
        return LibhdfsWriter(self, self.call("create", path, lambda fs, p: fs.open_output_stream(p)), path)

    def write_once(self, path: str, data: bytes) -> None:
        """See Driver."""
        folder, _, name = path.rpartition("/")
        aside = f"{folder}/.{name}.{secrets.token_hex(4)}".lstrip("/")
        self._refuse_existing(path)
        self.info(folder)
        try:
            self.call("create", aside, lambda fs, p: fs.create_dir(p, recursive=False))
            writer = LibhdfsWriter(
                self, self.call("create", f"{aside}/{name}", lambda fs, p: fs.open_output_stream(p)), f"{aside}/{name}"
            )
            writer.write(memoryview(data))
            writer.commit()
            # Onto the folder, not onto the name: pyarrow removes a file that is in the way.
            self.call("rename", f"{aside}/{name}", lambda fs, p: fs.move(p, self._path(folder)))
        except (CheckpointUnavailable, CheckpointQuota):
            self._refuse_existing(path)
            raise
        finally:
            with suppress(CheckpointError):
                self.remove_tree(aside)

    def make_dirs(self, path: str) -> None:
        """See Driver."""
        self.call("create", path, lambda fs, p: fs.create_dir(p, recursive=True))

    def remove(self, path: str) -> None:
        """See Driver."""
        try:
            self.call("remove", path, lambda fs, p: fs.delete_file(p))
        except CheckpointNotFound:
            return
        except CheckpointUnavailable:
            with suppress(CheckpointNotFound):
                self.info(path)
                raise

    def remove_tree(self, path: str) -> None:
        """See Driver."""
        # Looked for first: removing says "not found" for a dead NameNode, too.
        with suppress(CheckpointNotFound):
            self.info(path)
            self.call("remove", path, lambda fs, p: fs.delete_dir(p))

    def close(self) -> None:
        """See Driver."""
        self._file_system = None

    def lost(self, path: str) -> bool:
        """Whether a file that is being written is not there any more."""
        try:
            self.info(path)
        except CheckpointNotFound:
            return True
        return False

    def _refuse_existing(self, path: str) -> None:
        with suppress(CheckpointNotFound):
            self.info(path)
            raise CheckpointExists(f"{self._path(path)} is there already", url=self._path(path))

    def _entry(self, info: Any) -> Entry:
        is_dir = info.type is self._arrow.FileType.Directory
        return Entry(info.base_name, is_dir, 0 if is_dir else info.size)

    def _explained(self, error: OSError, operation: str, full: str) -> CheckpointError | None:
        """What an error of libhdfs that says nothing means, found out by asking; None for one that says enough."""
        where = f"cannot {operation} {full}"
        if error.errno == errno.EROFS:
            return CheckpointUnavailable(f"{where}: the NameNode is in safe mode", url=full, operation=operation)
        if error.errno == errno.ESTALE:
            return CheckpointLeaseLost(f"{where}: another process took it over", url=full, operation=operation)
        if error.errno not in _OPAQUE or operation in ("list", "look at", "read"):
            return None
        trouble = self._trouble()
        if trouble is not None:
            return CheckpointUnavailable(f"{where}: {trouble}", url=full, operation=operation)
        if operation == "create":
            return CheckpointQuota(
                f"{where}: the NameNode answers and takes no new name there; most likely a quota is used up "
                f"(libhdfs says only {error}; the Java exception is on standard error)",
                url=full,
                operation=operation,
            )
        return CheckpointUnavailable(
            f"{where}: the NameNode serves; to libhdfs a quota of space, full disks and dead DataNodes look the same "
            f"(it says only {error}; the Java exception is on standard error)",
            url=full,
            operation=operation,
        )

    def _trouble(self) -> str | None:
        """Why nothing can be written at all; None if the NameNode serves.

        Removing what is not there changes nothing, is refused in safe mode, and needs no quota.
        """
        probe = f"{self._location.path}/.edl-probe-{secrets.token_hex(6)}"
        try:
            within(self._call_timeout_s, lambda: self._here().delete_file(probe))
        except TimeoutError as error:
            return f"the NameNode does not answer ({error})"
        except OSError as error:
            if error.errno in (errno.EIO, errno.ENOENT, errno.EACCES):
                return None
        else:
            return None
        try:
            within(self._call_timeout_s, lambda: self._here().get_file_info(self._arrow.FileSelector("/")))
        except FileNotFoundError:
            return "the NameNode does not answer"
        except PermissionError:
            pass  # an answer
        except OSError as error:
            return f"the NameNode does not answer ({error})"
        return "the NameNode answers and takes no change: it is in safe mode"


class LibhdfsWriter:
    """A new file on HDFS; see Writer."""

    def __init__(self, driver: LibhdfsDriver, file: Any, path: str) -> None:
        self._driver = driver
        self._file = file
        self._path = path

    def write(self, data: memoryview) -> None:
        """See Writer."""
        self._step(lambda: self._file.write(data))

    def commit(self) -> None:
        """See Writer."""
        self._step(self._file.close)

    def abort(self) -> None:
        """See Writer."""
        # The file is removed under its writer: closing it afterwards fails, and that is the point.
        with suppress(CheckpointError):
            self._driver.remove(self._path)
        with suppress(CheckpointError):
            self._driver.call("close", self._path, lambda _fs, _path: self._file.close())

    def _step(self, what: Callable[[], object]) -> None:
        try:
            self._driver.call("write", self._path, lambda _fs, _path: what())
        except CheckpointUnavailable as error:
            if self._driver.lost(self._path):
                raise CheckpointLeaseLost(
                    f"cannot write {self._path}: it is not there any more; another process removed it or took it over",
                    url=self._path,
                    operation="write",
                ) from error
            raise


class LibhdfsReader:
    """A file on HDFS being read; see Reader."""

    def __init__(self, driver: LibhdfsDriver, file: Any, path: str) -> None:
        self._driver = driver
        self._file = file
        self._path = path

    def readinto(self, buffer: memoryview) -> int:
        """See Reader."""
        count: int = self._driver.call("read", self._path, lambda _fs, _path: self._file.readinto(buffer))
        return count

    def close(self) -> None:
        """See Reader."""
        with suppress(CheckpointError):
            self._driver.call("close", self._path, lambda _fs, _path: self._file.close())


def _package(url: str) -> Any:
    try:
        import pyarrow.fs
    except ImportError as error:
        raise CheckpointUnsupported(
            f"{url} with driver=libhdfs needs pyarrow: pip install 'edl-elastic[libhdfs]'", url=url
        ) from error
    return pyarrow.fs
