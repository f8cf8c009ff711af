"""The driver for any fsspec file system: memory://, s3://, gs:// and what else is installed.

Invariant: as in base. A file of `write_once` is created exclusively where the file system can; elsewhere the name is
looked for first, which leaves a gap that only the uniqueness of attempt directories closes. Listings are never taken
from fsspec's cache.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from checkpoints.drivers.base import Entry, translated
from checkpoints.errors import CheckpointError, CheckpointExists, CheckpointNotFound, CheckpointUnsupported

#: For object stores, whose own defaults wait for minutes; what the user set through fsspec's configuration goes before.
FAIL_FAST: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3}}},
}

#: Object stores where a folder is only a part of names, and the first part names a bucket of the account.
WITH_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs")

#: Buffer of one upload part or read-ahead; smaller ones make WebHDFS ten times slower.
BLOCK_BYTES = 64 << 20


class FsspecDriver:
    """A folder on a file system that fsspec knows by the URL's scheme.

    Attributes:
        has_folders: whether a folder is there without a file in it.

    Raises:
        CheckpointUnsupported: if fsspec or the package for the scheme is missing, or there is no such scheme.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.has_folders = url.partition("://")[0] not in WITH_BUCKETS
        self._opened, self._root = self._open_file_system(url)
        self._pid = os.getpid()

    @property
    def _fs(self) -> Any:
        """The file system of this process: a forked child makes its own, because connections are not shared."""
        if self._pid != os.getpid():
            self._opened, self._root = self._open_file_system(self.url)
            self._pid = os.getpid()
        return self._opened

    def _open_file_system(self, url: str) -> tuple[Any, str]:
        try:
            import fsspec

            # A file system of our own: cached instances are shared with the user's code and with forked children.
            protocol = url.partition("://")[0]
            options = {
                k: v for k, v in FAIL_FAST.get(protocol, {}).items() if k not in fsspec.config.conf.get(protocol, {})
            }
            fs, root = fsspec.url_to_fs(url, skip_instance_cache=True, **options)
        except ImportError as error:
            raise CheckpointUnsupported(f"no driver for {url}: {error}", url=url) from error
        except ValueError as error:
            raise CheckpointUnsupported(f"fsspec does not accept {url}: {error}", url=url) from error
        return fs, str(root).rstrip("/")

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else (self._root or "/")

    def list_dir(self, path: str) -> list[Entry]:
        """See Driver."""
        full = self._path(path)
        with translated("list", full):
            self._fs.invalidate_cache()
            rows = self._fs.ls(full, detail=True)
            # Object stores answer the listing of a file with the file itself.
            return [entry for row in rows if (entry := _entry(row)).name and row["name"].rstrip("/") != full]

    def info(self, path: str) -> Entry:
        """See Driver."""
        full = self._path(path)
        with translated("look at", full):
            self._fs.invalidate_cache()
            return _entry(self._fs.info(full))

    def open_read(self, path: str) -> FsspecReader:
        """See Driver."""
        full = self._path(path)
        with translated("read", full):
            return FsspecReader(self._fs.open(full, "rb", block_size=BLOCK_BYTES), full)

    def open_write(self, path: str) -> FsspecWriter:
        """See Driver."""
        self._refuse_existing(path)
        full = self._path(path)
        with translated("write", full):
            return FsspecWriter(self._fs, self._fs.open(full, "wb", block_size=BLOCK_BYTES), full)

    def write_once(self, path: str, data: bytes) -> None:
        """See Driver."""
        self._refuse_existing(path)
        full = self._path(path)
        with translated("write", full):
            try:
                self._fs.pipe_file(full, data, mode="create")
            except NotImplementedError:
                self._fs.pipe_file(full, data)

    def make_dirs(self, path: str) -> None:
        """See Driver."""
        full = self._path(path)
        with translated("make the folder", full), suppress(FileExistsError):
            if self.has_folders:
                self._fs.makedirs(full, exist_ok=True)
            else:
                # Only asks for the bucket. `makedirs` would make one under any mistyped name that is free.
                self._fs.mkdir(full, create_parents=False)

    def remove(self, path: str) -> None:
        """See Driver."""
        with translated("remove", self._path(path)), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(path))

    def remove_tree(self, path: str) -> None:
        """See Driver."""
        with translated("remove", self._path(path)), suppress(FileNotFoundError):
            self._fs.rm(self._path(path), recursive=True)

    def close(self) -> None:
        """See Driver."""

    def _refuse_existing(self, path: str) -> None:
        with suppress(CheckpointNotFound):
            self.info(path)
            raise CheckpointExists(f"{self._path(path)} is there already", url=self._path(path))


class FsspecWriter:
    """A new file of an fsspec file system; see Writer."""

    def __init__(self, fs: Any, file: Any, path: str) -> None:
        self._fs = fs
        self._file = file
        self._path = path

    def write(self, data: memoryview) -> None:
        """See Writer."""
        with translated("write", self._path):
            self._file.write(data)

    def commit(self) -> None:
        """See Writer."""
        with translated("write", self._path):
            self._file.close()

    def abort(self) -> None:
        """See Writer."""
        # Closing may publish what was written so far: nothing refers to it, and it is removed at once if that works.
        with suppress(CheckpointError), translated("write", self._path):
            self._file.close()
        with suppress(CheckpointError), translated("remove", self._path):
            self._fs.rm_file(self._path)


class FsspecReader:
    """A file of an fsspec file system being read; see Reader."""

    def __init__(self, file: Any, path: str) -> None:
        self._file = file
        self._path = path

    def readinto(self, buffer: memoryview) -> int:
        """See Reader."""
        with translated("read", self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """See Reader."""
        self._file.close()


def _entry(row: dict[str, Any]) -> Entry:
    is_dir = row["type"] == "directory"
    return Entry(row["name"].rstrip("/").rpartition("/")[2], is_dir, 0 if is_dir else int(row["size"] or 0))
