"""The driver for a local disk or a mounted file system.

Invariant: after `commit` or `write_once` returns, the file and its name are on the disk (fsync of the file and of its
folder). A file of `write_once` is linked under its name when it is complete, and a link never replaces a name.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from checkpoints.drivers.base import Entry, translated
from checkpoints.errors import CheckpointUnsupported


class LocalDriver:
    """Files under a folder of this machine.

    Args:
        url: a path, or `file:///path`; `~` is the home directory.

    Raises:
        CheckpointUnsupported: if a file:// URL names another host.
    """

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

    def __init__(self, path: Path) -> None:
        self.path = path
        with translated("write", str(path)):
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, data: memoryview) -> None:
        """See Writer."""
        with translated("write", str(self.path)):
            done = 0
            while done < len(data):
                done += os.write(self._fd, data[done:])

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
