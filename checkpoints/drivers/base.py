"""The interface that every file system driver has, and the one map from foreign errors to ours.

A driver is bound to a root URL; paths are relative to it, with "/" between parts, and "" is the root itself.

Invariants:
- `list_dir` and `info` raise `CheckpointNotFound` only when the file system said so. There is no `exists()`: several
  clients answer it with False during an outage.
- A file appears under the name given to `write_once` complete or not at all, and never replaces another.
- A writer that is not committed leaves either no file or one that nothing refers to; `abort` tries to remove it.
A driver does not retry; it fails within seconds when the other side is dead.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from checkpoints.errors import (
    CheckpointError,
    CheckpointExists,
    CheckpointLeaseLost,
    CheckpointNotFound,
    CheckpointPermission,
    CheckpointQuota,
    CheckpointTimeout,
    CheckpointUnavailable,
    CheckpointUnsupported,
)

#: One write or read call to a file system. Far below 2 GB, where single HDFS writes fail, and small enough that data
#: is still in the processor's cache when its checksum is computed.
CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Entry:
    """One name in a folder; the size is 0 for a folder."""

    name: str
    is_dir: bool
    size_bytes: int


class Writer(Protocol):
    """A new file being written. Exactly one of `commit` and `abort` ends it."""

    def write(self, data: memoryview) -> None:
        """Append all of the data, which is at most CHUNK_BYTES."""

    def commit(self) -> None:
        """Make the file durable, as far as the file system can, and close it."""

    def abort(self) -> None:
        """Drop the file; never raises for a file that is already gone."""


class Reader(Protocol):
    """A file being read from its beginning."""

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer from its start, maybe not to its end; returns the bytes read, 0 at the end of the file."""

    def close(self) -> None:
        """Release the file."""


class Driver(Protocol):
    """A file system seen from a checkpoint folder. All errors are `CheckpointError`s."""

    #: The root as the user wrote it, for messages.
    url: str

    def list_dir(self, path: str) -> list[Entry]:
        """Entries of a folder, in no order; CheckpointNotFound if there is no such folder."""

    def info(self, path: str) -> Entry:
        """What is under this name; CheckpointNotFound if nothing is."""

    def open_read(self, path: str) -> Reader:
        """Open a file; CheckpointNotFound if there is none."""

    def open_write(self, path: str) -> Writer:
        """Begin a new file in a folder that exists; CheckpointExists if the name is taken."""

    def write_once(self, path: str, data: bytes) -> None:
        """Write a small file whole; CheckpointExists if the name is taken."""

    def make_dirs(self, path: str) -> None:
        """Make a folder and its parents; fine if it is there."""

    def remove(self, path: str) -> None:
        """Remove a file; fine if it is gone."""

    def remove_tree(self, path: str) -> None:
        """Remove a folder and what is in it; fine if it is gone."""

    def close(self) -> None:
        """Release connections; the driver is not used afterwards."""


def read_file(driver: Driver, path: str, limit_bytes: int) -> bytes:
    """The whole of a small file.

    Raises:
        CheckpointNotFound: if there is none.
        ValueError: if it is larger than the limit.
    """
    data = bytearray()
    chunk = memoryview(bytearray(min(CHUNK_BYTES, limit_bytes + 1)))
    reader = driver.open_read(path)
    try:
        while count := reader.readinto(chunk):
            data += chunk[:count]
            if len(data) > limit_bytes:
                raise ValueError(f"{path} is larger than {limit_bytes} bytes")
    finally:
        reader.close()
    return bytes(data)


#: Names of Java exceptions in the text of an HDFS client's error, and what they mean to us. First match wins.
_JAVA: tuple[tuple[re.Pattern[str], type[CheckpointError]], ...] = (
    # Its text says that the file does not exist; it would be taken for an absence further down.
    (re.compile(r"LeaseExpired|No lease on|not under [Cc]onstruction"), CheckpointLeaseLost),
    (re.compile(r"SafeMode"), CheckpointUnavailable),
    (re.compile(r"[ND]SQuotaExceeded|QuotaExceeded|No space left|DiskOutOfSpace"), CheckpointQuota),
    (re.compile(r"AccessControlException|[Pp]ermission denied|Authoriz|Authentic|NoCredentials"), CheckpointPermission),
    (re.compile(r"FileAlreadyExists|AlreadyBeingCreated|already exists"), CheckpointExists),
    # A DataNode that lost its block says "not found" too: only a NameNode's FileNotFoundException means absence.
    (re.compile(r"java\.io\.FileNotFoundException"), CheckpointNotFound),
    (re.compile(r"ParentNotDirectory|PathIsNotDirectory"), CheckpointNotFound),
    (re.compile(r"[Tt]imed? ?out|Timeout"), CheckpointTimeout),
)

#: Where a Java stack trace begins, as it is or escaped; every one of a NameNode goes through "AccessController".
_STACK_TRACE = re.compile(r"(null)?(\\n|\n)\s*(\\t)?at ")

_ERRNO: dict[int, type[CheckpointError]] = {
    errno.ENOSPC: CheckpointQuota,
    errno.EDQUOT: CheckpointQuota,
    errno.EFBIG: CheckpointQuota,
    errno.EROFS: CheckpointPermission,
    errno.ETIMEDOUT: CheckpointTimeout,
    errno.ENOTSUP: CheckpointUnsupported,
}

_ADVICE: dict[type[CheckpointError], str] = {
    CheckpointPermission: "give the user access, or set HADOOP_USER_NAME for HDFS, or choose another checkpoint URL",
    CheckpointQuota: "free space, raise the quota, or lower keep",
    CheckpointUnavailable: "check that the file system is up and that the checkpoint URL names it",
    CheckpointTimeout: "check the file system and the network",
    CheckpointLeaseLost: "another process removed or took over this file: does a second job save to this folder?",
}


def translate(error: Exception, *, operation: str, path: str) -> CheckpointError:
    """Our error for a foreign one; what is not known is an outage, never an absence.

    Args:
        error: what the client raised.
        operation: what was tried, a verb.
        path: the full path or URL it was tried on.
    """
    kind = _kind(error)
    detail = " ".join(_text(error).split())[:400]
    advice = _ADVICE.get(kind)
    return kind(f"cannot {operation} {path}: {detail}{f' ({advice})' if advice else ''}", url=path, operation=operation)


def _kind(error: Exception) -> type[CheckpointError]:
    builtin: tuple[tuple[type[Exception], type[CheckpointError]], ...] = (
        (FileNotFoundError, CheckpointNotFound),
        (NotADirectoryError, CheckpointNotFound),
        (FileExistsError, CheckpointExists),
        (PermissionError, CheckpointPermission),
        (TimeoutError, CheckpointTimeout),
        (NotImplementedError, CheckpointUnsupported),
    )
    for foreign, ours in builtin:
        if isinstance(error, foreign):
            return ours
    if isinstance(error, OSError) and error.errno in _ERRNO:
        return _ERRNO[error.errno]
    text = _text(error)
    return next((ours for pattern, ours in _JAVA if pattern.search(text)), CheckpointUnavailable)


def _text(error: Exception) -> str:
    return _STACK_TRACE.split(f"{type(error).__name__}: {error}", maxsplit=1)[0]


@contextmanager
def translated(operation: str, path: str) -> Iterator[None]:
    """Turn what a client raises inside into a `CheckpointError`, cause kept; mistakes in our code pass unchanged."""
    try:
        yield
    except (CheckpointError, TypeError, AttributeError, NameError, AssertionError):
        raise
    except Exception as error:
        raise translate(error, operation=operation, path=path) from error
