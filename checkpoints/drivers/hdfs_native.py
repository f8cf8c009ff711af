"""The driver for HDFS without a JVM, on the hdfs-native package.

URLs and their options are those of `location`. The client itself reads HADOOP_CONF_DIR (a nameservice, Kerberos) and,
at each connection, HADOOP_USER_NAME; it knows no other way to be told the user.

Invariants:
- A call ends: a dead NameNode fails within a second (the client's own default is three minutes), and one that is
  silent fails after the call's timeout.
- The client lives in one process. After a fork the child makes its own, because the parent's hangs there.
- A file under a write-once name is renamed there when it is complete and synced.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from checkpoints.drivers.base import Entry, translated
from checkpoints.drivers.bounded import CALL_TIMEOUT_S, within
from checkpoints.drivers.location import parse_location
from checkpoints.errors import CheckpointError, CheckpointUnavailable, CheckpointUnsupported

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Strings, as in hdfs-site.xml. The defaults (15 attempts, sleeping up to 15 s) are for daemons that cannot give up.
FAIL_FAST = {
    "dfs.client.failover.max.attempts": "4",
    "dfs.client.failover.sleep.base.millis": "50",
    "dfs.client.failover.sleep.max.millis": "500",
}


class HdfsNativeDriver:
    """A folder on HDFS.

    Args:
        url: see `location`.
        call_timeout_s: longest wait for one call; the URL's `timeout` goes before it.

    Raises:
        CheckpointUnsupported: if the package is missing, the URL does not parse, or it names another user than the one
            this process already is on HDFS.
    """

    def __init__(self, url: str, call_timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.url = url
        location = parse_location(url)
        self._location = location
        self._address = f"hdfs://{location.authority}" if location.hosts else None
        self._root = location.path
        self._call_timeout_s = location.timeout_s or call_timeout_s
        self._native = _package(url)
        _be(location.user, url)
        self._client: Any = None
        self._pid = -1
        self._inherited: list[Any] = []  # clients of a parent process, which must not even be dropped here

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else (self._root or "/")

    def _here(self) -> Any:
        """The client of this process."""
        if self._pid != os.getpid():
            if self._client is not None:
                self._inherited.append(self._client)
            try:
                self._client = self._native.Client(self._address, {**FAIL_FAST, **self._location.settings()})
            except RuntimeError as error:
                raise CheckpointUnavailable(
                    f"cannot use {self.url}: {error} (give host:port, or set HADOOP_CONF_DIR to the cluster's "
                    "configuration)",
                    url=self.url,
                ) from error
            self._pid = os.getpid()
        return self._client

    def _call(self, operation: str, path: str, what: Callable[[Any, str], T]) -> T:
        full = self._path(path)
        with translated(operation, f"{self._address or 'hdfs://'}{full}"):
            client = self._here()
            return within(self._call_timeout_s, lambda: what(client, full))

    def list_dir(self, path: str) -> list[Entry]:
        """See Driver."""
        return self._call("list", path, lambda c, p: [_entry(status) for status in c.list_status(p, False)])

    def info(self, path: str) -> Entry:
        """See Driver."""
        return self._call("look at", path, lambda c, p: _entry(c.get_file_info(p)))

    def open_read(self, path: str) -> HdfsReader:
        """See Driver."""
        file = self._call("read", path, lambda c, p: c.read(p))
        return HdfsReader(file, self._path(path), self._call_timeout_s)

    def open_write(self, path: str) -> HdfsWriter:
        """See Driver."""
        options = self._native.WriteOptions(
            block_size=self._location.block_size_bytes,
            replication=self._location.replication,
            overwrite=False,
            create_parent=False,
        )
        file = self._call("write", path, lambda c, p: c.create(p, options))
        return HdfsWriter(file, self._path(path), lambda: self.remove(path), self._call_timeout_s)

    def write_once(self, path: str, data: bytes) -> None:
        """See Driver."""
        folder, _, name = path.rpartition("/")
        whole = f"{folder}/.{name}.{secrets.token_hex(4)}".lstrip("/")
        writer = self.open_write(whole)
        try:
            writer.write(memoryview(data))
            writer.commit()
            self._call("write", path, lambda c, p: c.rename(self._path(whole), p, False))
        except BaseException:
            writer.abort()
            raise

    def make_dirs(self, path: str) -> None:
        """See Driver."""
        self._call("make the folder", path, lambda c, p: c.mkdirs(p, 0o755, True))

    def remove(self, path: str) -> None:
        """See Driver."""
        self._call("remove", path, lambda c, p: c.delete(p, False))

    def remove_tree(self, path: str) -> None:
        """See Driver."""
        self._call("remove", path, lambda c, p: c.delete(p, True))

    def close(self) -> None:
        """See Driver."""
        self._client, self._pid = None, -1


class HdfsWriter:
    """A new file on HDFS; see Writer. It is not used as a context manager: leaving one publishes a cut file."""

    def __init__(self, file: Any, path: str, remove: Callable[[], None], call_timeout_s: float) -> None:
        self._file = file
        self._path = path
        self._remove = remove
        self._call_timeout_s = call_timeout_s

    def write(self, data: memoryview) -> None:
        """See Writer."""
        with translated("write", self._path):
            within(self._call_timeout_s, lambda: self._file.write(data))

    def commit(self) -> None:
        """See Writer."""
        with translated("write", self._path):
            within(self._call_timeout_s, self._sync)
            within(self._call_timeout_s, self._file.close)

    def abort(self) -> None:
        """See Writer."""
        # The file is removed under its writer: closing it afterwards fails, and that is the point.
        with suppress(CheckpointError):
            self._remove()

    def _sync(self) -> None:
        """To the disks of the DataNodes, not only to their memory; erasure-coded files cannot, closing must do."""
        try:
            self._file.hsync()
        except (RuntimeError, NotImplementedError) as error:
            if "nsupported" not in str(error):
                raise
            logger.debug("%s is closed without hsync: %s", self._path, error)


class HdfsReader:
    """A file on HDFS being read; see Reader."""

    def __init__(self, file: Any, path: str, call_timeout_s: float) -> None:
        self._file = file
        self._path = path
        self._call_timeout_s = call_timeout_s

    def readinto(self, buffer: memoryview) -> int:
        """See Reader."""
        with translated("read", self._path):
            data: bytes = within(self._call_timeout_s, lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """See Reader."""
        self._file = None


def _entry(status: Any) -> Entry:
    return Entry(status.path.rstrip("/").rpartition("/")[2], status.isdir, 0 if status.isdir else status.length)


def _be(user: str | None, url: str) -> None:
    """Let this process be `user` on HDFS, if it is nobody yet."""
    if user is not None and os.environ.setdefault("HADOOP_USER_NAME", user) != user:
        raise CheckpointUnsupported(
            f"{url} names the user {user}, and HADOOP_USER_NAME is {os.environ['HADOOP_USER_NAME']}: hdfs-native has "
            "one user for each process; unset it, or use driver=libhdfs or webhdfs://",
            url=url,
        )


def _package(url: str) -> Any:
    try:
        import hdfs_native
    except ImportError as error:
        raise CheckpointUnsupported(
            f"{url} needs the hdfs-native package: pip install 'edl-elastic[hdfs]' (or use webhdfs://)", url=url
        ) from error
    return hdfs_native
