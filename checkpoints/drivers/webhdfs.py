"""The driver for HDFS over HTTP: fsspec's WebHDFS client, with the traps of its renames closed.

    webhdfs://host:50070/dir, webhdfs://user@host:50070/dir

The user is the one in the URL, else HADOOP_USER_NAME, else the login name.

Invariants: every call has a timeout, and every answer that is an error is raised (fsspec takes the text of some for
the file's content). A file under a write-once name is renamed there when it is complete; a rename that is refused
looks like success, so who won is read back. It cannot ask the DataNodes to sync their disks; hdfs:// can.
"""

from __future__ import annotations

import functools
import getpass
import os
import secrets
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from checkpoints.drivers.base import translated
from checkpoints.drivers.generic import FsspecDriver
from checkpoints.errors import CheckpointError, CheckpointExists, CheckpointNotFound, CheckpointUnsupported

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
DEFAULT_PORT = 50070


class WebHdfsDriver(FsspecDriver):
    """A folder on HDFS, reached over HTTP.

    Raises:
        CheckpointUnsupported: if fsspec or requests is missing, or the URL has no host.
    """

    def _open_file_system(self, url: str) -> tuple[Any, str]:
        parts = urlsplit(url)
        if not parts.hostname:
            raise CheckpointUnsupported(f"{url} has no host: write webhdfs://host:50070/dir", url=url)
        try:
            from fsspec.implementations.webhdfs import WebHDFS
        except ImportError as error:
            raise CheckpointUnsupported(
                f"{url} needs fsspec and requests: pip install 'edl-elastic[webhdfs]'", url=url
            ) from error
        fs = WebHDFS(parts.hostname, parts.port or DEFAULT_PORT, user=_user(parts.username), skip_instance_cache=True)
        # requests waits for ever unless told otherwise at each call.
        fs.session.request = functools.partial(fs.session.request, timeout=(CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S))
        fs.session.hooks["response"].append(_raise_remote)
        return fs, parts.path.rstrip("/")

    def write_once(self, path: str, data: bytes) -> None:
        """See Driver."""
        folder, _, name = path.rpartition("/")
        whole = f"{folder}/.{name}.{secrets.token_hex(4)}".lstrip("/")
        self._refuse_existing(path)
        try:
            with translated("write", self._path(path)):
                # A rename needs its folder; a write would make it again after another process removed it.
                self.info(folder)
                self._fs.pipe_file(self._path(whole), data)
                self._fs.mv(self._path(whole), self._path(path))
            self._check_moved(whole, path)
        finally:
            with suppress(CheckpointError):
                self.remove(whole)

    def _check_moved(self, whole: str, path: str) -> None:
        try:
            self.info(whole)
        except CheckpointNotFound:
            self.info(path)  # raises if it is at neither name
        else:
            raise CheckpointExists(f"{self._path(path)} is there already", url=self._path(path))

    def close(self) -> None:
        """See Driver."""
        self._fs.session.close()


def _raise_remote(response: Any, *_: Any, **__: Any) -> None:
    """Raise what the NameNode or DataNode answered, with the name of its Java class, which says what kind it is."""
    if response.status_code < 400:
        return
    try:
        remote = response.json()["RemoteException"]
        text = f"{remote['javaClassName']}: {remote['message']}"
    except (ValueError, KeyError, TypeError):
        response.raise_for_status()
        return
    raise (FileNotFoundError if remote.get("exception") == "FileNotFoundException" else RuntimeError)(text)


def _user(from_url: str | None) -> str:
    return from_url or os.environ.get("HADOOP_USER_NAME") or getpass.getuser()
