"""The package hdfs3 as its source says it behaves, on a local folder: its native library is in no package index.

Its habits are kept: `exists` says no during an outage, a listing that fails is empty, closing tells no error, opening
for writing replaces and makes folders, a rename says with False that it did nothing.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class HDFileSystem:
    """See hdfs3.core.HDFileSystem; `away` stands for a dead NameNode."""

    root: Path
    away = False

    def __init__(self, pars: dict[str, str], **given: Any) -> None:
        self.given = {**pars, **given}

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def disconnect(self) -> None:
        """Nothing is open."""

    def exists(self, path: str) -> bool:
        return not self.away and self._at(path).exists()

    def info(self, path: str) -> dict[str, Any]:
        if not self.exists(path):
            raise FileNotFoundError(path)
        found = self._at(path)
        return {
            "name": f"hdfs://fake:8020{path}",
            "kind": "directory" if found.is_dir() else "file",
            "size": 0 if found.is_dir() else found.stat().st_size,
        }

    def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
        if not self.exists(path):
            raise FileNotFoundError(path)
        assert detail
        return [self.info(f"{path.rstrip('/')}/{item.name}") for item in self._at(path).iterdir()]

    def makedirs(self, path: str, mode: int) -> None:
        if self.away:
            raise OSError("Create directory failed: HdfsIOException: failed to connect")
        self._at(path).mkdir(mode, parents=True, exist_ok=True)

    def mv(self, source: str, target: str) -> bool:
        if not self.exists(source):
            raise FileNotFoundError(source)
        if self._at(target).exists():
            return False
        self._at(source).rename(self._at(target))
        return True

    def rm(self, path: str, recursive: bool) -> None:
        if not self.exists(path):
            raise FileNotFoundError(path)
        if self._at(path).is_dir():
            shutil.rmtree(self._at(path))
        else:
            self._at(path).unlink()

    def open(self, path: str, mode: str, replication: int = 0, block_size: int = 0) -> Any:
        if self.away:
            raise OSError(errno.EIO, f"Could not open file: {path}, mode: {mode} failed to connect")
        if mode == "wb":
            self._at(path).parent.mkdir(parents=True, exist_ok=True)
        return self._at(path).open(mode)


def package(root: Path) -> Any:
    """What `import hdfs3` gives, with its files below `root`."""
    root.mkdir(exist_ok=True)
    return SimpleNamespace(HDFileSystem=type("HDFileSystem", (HDFileSystem,), {"root": root}))
