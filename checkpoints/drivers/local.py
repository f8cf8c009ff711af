"""The driver for a local disk or a mounted file system.

Large writes from page-aligned memory go past the page cache where the file system can do that (O_DIRECT): it takes half
the time and hardly any processor, which the training beside it keeps, and leaves the cache to the training's data.

Invariant: after `commit` or `write_once` returns, the file and its name are on the disk (fsync of the file and of its
folder). A file of `write_once` is linked under its name when it is complete, and a link never replaces a name.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from checkpoints.drivers.base import Entry, translated
from checkpoints.errors import CheckpointUnsupported

#: Addresses, places and sizes of direct writes are multiples of this.
PAGE_BYTES = 4096
#: Smaller writes are left to the page cache.
DIRECT_FROM_BYTES = 1 << 20


class LocalDriver:
    """Files under a folder of this machine.

    Attributes:
        is_local: reading a file twice costs less than holding it in memory.

    Args:
        url: a path, or `file:///path`; `~` is the home directory.

    Raises:
        CheckpointUnsupported: if a file:// URL names another host.
    """

    is_local = True

    def __init__(self, url: str) -> None:
        self.url = url
        path = url.removeprefix("file://")
        if path != url and not path.startswith("/"):
            raise CheckpointUnsupported(f"{url} names a host: write file:///absolute/path, or a plain path", url=url)
        self._root = Path(path).expanduser().absolute()

    def list_dir(self, path: str) -> list[Entry]:
        """See Driver."""
        with translated("list", str(self._root / path)), os.scandir(self._root / path) as found:
            return [entry for item in found if (entry := _entry(item)) is not None]

    def info(self, path: str) -> Entry:
        """See Driver."""
        target = self._root / path
        with translated("look at", str(target)):
            status = target.stat()
            is_dir = target.is_dir()
            return Entry(target.name, is_dir, 0 if is_dir else status.st_size)

    def open_read(self, path: str) -> LocalReader:
        """See Driver."""
        return LocalReader(self._root / path)

    def open_write(self, path: str) -> LocalWriter:
        """See Driver."""
        return LocalWriter(self._root / path)

    def write_once(self, path: str, data: bytes) -> None:
        """See Driver."""
        target = self._root / path
        whole = LocalWriter(target.with_name(f".{target.name}.{secrets.token_hex(4)}"))
        try:
            whole.write(memoryview(data))
            whole.commit()
            with translated("write", str(target)):
                _link(whole.path, target)
                _sync_folder(target.parent)
        finally:
            whole.abort()

    def make_dirs(self, path: str) -> None:
        """See Driver."""
        target = self._root / path
        with translated("make the folder", str(target)):
            missing = [folder for folder in (target, *target.parents) if not folder.exists()]
            target.mkdir(parents=True, exist_ok=True)
            for folder in missing:
                _sync_folder(folder.parent)

    def remove(self, path: str) -> None:
        """See Driver."""
        with translated("remove", str(self._root / path)):
            (self._root / path).unlink(missing_ok=True)

    def remove_tree(self, path: str) -> None:
        """See Driver."""
        with translated("remove", str(self._root / path)), suppress(FileNotFoundError):
            shutil.rmtree(self._root / path)

    def close(self) -> None:
        """See Driver."""


class LocalWriter:
    """A new local file; see Writer."""

    #: A local file takes larger writes than other file systems, which spares a busy program's interpreter lock.
    chunk_bytes = 64 << 20

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = 0
        self._direct = False
        self._can_direct = hasattr(os, "O_DIRECT")
        with translated("write", str(path)):
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, data: memoryview) -> None:
        """See Writer."""
        with translated("write", str(self.path)):
            done = 0
            while done < len(data):
                count = self._write(data[done:])
                self._written += count
                done += count

    def _write(self, data: memoryview) -> int:
        """Write some of the data, past the page cache if place, size and memory are fit for it."""
        whole = len(data) // PAGE_BYTES * PAGE_BYTES
        direct = self._can_direct and whole >= DIRECT_FROM_BYTES and not (self._written % PAGE_BYTES)
        if direct and _address(data) % PAGE_BYTES == 0:
            try:
                self._set_direct(True)
                return os.write(self._fd, data[:whole])
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise
                self._can_direct = False  # not on this file system
        self._set_direct(False)
        return os.write(self._fd, data)

    def _set_direct(self, direct: bool) -> None:
        if direct != self._direct:
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
            self._direct = direct

    def commit(self) -> None:
        """See Writer."""
        with translated("write", str(self.path)):
            os.fsync(self._fd)
            self._close()
            _sync_folder(self.path.parent)

    def abort(self) -> None:
        """See Writer."""
        self._close()
        with translated("remove", str(self.path)):
            self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class LocalReader:
    """A local file being read; see Reader."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with translated("read", str(path)):
            self._file = path.open("rb", buffering=0)

    def readinto(self, buffer: memoryview) -> int:
        """See Reader."""
        with translated("read", str(self._path)):
            return self._file.readinto(buffer) or 0

    def close(self) -> None:
        """See Reader."""
        self._file.close()


def _address(data: memoryview) -> int:
    """Where the bytes lie; an odd number for those that must not be written to, whose address Python does not tell."""
    return 1 if data.readonly else ctypes.addressof(ctypes.c_char.from_buffer(data))


def _link(whole: Path, target: Path) -> None:
    """Give a complete file its name, unless that is taken."""
    try:
        os.link(whole, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        # No hard links here (FAT, some network mounts): reserve the name, then replace the reservation whole.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        whole.replace(target)


def _entry(item: os.DirEntry[str]) -> Entry | None:
    """What a listing found, None if it was removed since."""
    try:
        is_dir = item.is_dir()
        return Entry(item.name, is_dir, 0 if is_dir else item.stat().st_size)
    except FileNotFoundError:
        return None


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
