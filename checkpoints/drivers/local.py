"""The driver for a local disk or a mounted file system.

Large writes from page-aligned memory go past the page cache where the file system can do that (O_DIRECT): it takes half
the time and hardly any processor, which the training beside it keeps, and leaves the cache to the training's data.

Invariants:
- After `commit` or `write_once` returns, the file and its name are on the disk (fsync of the file and of its folder). A
  file of `write_once` is linked under its name when it is complete, and a link never replaces a name.
- Nothing but folders and plain files below the root is there: symbolic links are not followed, so nothing elsewhere is
  read or removed, and a pipe or a device does not hold who reads it for ever. The root itself may be a link.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from checkpoints.drivers.base import Entry, translated
from checkpoints.errors import CheckpointNotFound, CheckpointUnsupported

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

    def _at(self, path: str) -> Path:
        """Where a path lies; a folder on the way that is a symbolic link is not there."""
        target = self._root
        for name in path.split("/")[:-1]:
            target /= name
            if target.is_symlink():
                raise CheckpointNotFound(f"{target} is a symbolic link, which is not followed", url=str(target))
        return self._root / path

    def list_dir(self, path: str) -> list[Entry]:
        """See Driver."""
        target = self._at(f"{path}/") if path else self._root
        with translated("list", str(target)), os.scandir(target) as found:
            return [entry for item in found if (entry := _entry(item)) is not None]

    def info(self, path: str) -> Entry:
        """See Driver."""
        target = self._at(path)
        with translated("look at", str(target)):
            found = target.lstat() if path else target.stat()
            if stat.S_ISLNK(found.st_mode):
                raise CheckpointNotFound(f"{target} is a symbolic link, which is not followed", url=str(target))
            is_dir = stat.S_ISDIR(found.st_mode)
            return Entry(target.name, is_dir, 0 if is_dir else found.st_size)

    def open_read(self, path: str) -> LocalReader:
        """See Driver."""
        return LocalReader(self._at(path))

    def open_write(self, path: str) -> LocalWriter:
        """See Driver."""
        return LocalWriter(self._at(path))

    def write_once(self, path: str, data: bytes) -> None:
        """See Driver."""
        target = self._at(path)
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
        target = self._at(path)
        with translated("make the folder", str(target)):
            missing = [folder for folder in (target, *target.parents) if not folder.exists()]
            target.mkdir(parents=True, exist_ok=True)
            for folder in missing:
                _sync_folder(folder.parent)

    def remove(self, path: str) -> None:
        """See Driver."""
        with suppress(CheckpointNotFound):
            target = self._at(path)
            with translated("remove", str(target)):
                target.unlink(missing_ok=True)

    def remove_tree(self, path: str) -> None:
        """See Driver."""
        with suppress(CheckpointNotFound):
            target = self._at(path)
            with translated("remove", str(target)), suppress(FileNotFoundError):
                shutil.rmtree(target)

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
            self._file = io.FileIO(_open_plain(path))

    def readinto(self, buffer: memoryview) -> int:
        """See Reader."""
        with translated("read", str(self._path)):
            return self._file.readinto(buffer) or 0

    def close(self) -> None:
        """See Reader."""
        self._file.close()


def _open_plain(path: Path) -> int:
    """A descriptor of a plain file; whatever else has its name is not there."""
    try:
        # Without O_NONBLOCK, which plain files ignore, a pipe that nobody writes to would hold us for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
            raise
        raise CheckpointNotFound(f"{path} is not a plain file", url=str(path)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointNotFound(f"{path} is not a plain file", url=str(path))
    return fd


def _address(data: memoryview) -> int:
    """Where the bytes lie; an odd number for those that must not be written to, whose address Python does not tell."""
    return 1 if data.readonly else ctypes.addressof(ctypes.c_char.from_buffer(data))


def _link(whole: Path, target: Path) -> None:
    """Give a complete file its name, unless that is taken."""
    try:
        os.link(whole, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        # No hard links here (FAT, some network mounts): reserve the name, then replace the reservation whole.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        whole.replace(target)


def _entry(item: os.DirEntry[str]) -> Entry | None:
    """What a listing found, None if it was removed since, or is a symbolic link."""
    try:
        if item.is_symlink():
            return None
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
