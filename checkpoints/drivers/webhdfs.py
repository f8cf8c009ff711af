"""The driver for HDFS over HTTP: fsspec's WebHDFS client, with the traps of its renames closed.

    webhdfs://host:50070/dir, webhdfs://user@host1:50070,host2:50070/dir?replication=2

URLs and their options are those of `location`; with several NameNodes the next is asked when one is dead or standby.
The user is the one in the URL, else HADOOP_USER_NAME, else the login name.

Invariants: every call has a timeout, and every answer that is an error is raised (fsspec takes the text of some for
the file's content). A file under a write-once name is renamed there when it is complete; a rename that is refused
looks like success, so who won is read back. It cannot ask the DataNodes to sync their disks; hdfs:// can.
"""

from __future__ import annotations

import getpass
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from checkpoints.drivers.base import translated
from checkpoints.drivers.generic import BLOCK_BYTES, FsspecDriver, FsspecWriter
from checkpoints.drivers.location import parse_location, split_host
from checkpoints.errors import (
    CheckpointError,
    CheckpointExists,
    CheckpointNotFound,
    CheckpointQuota,
    CheckpointUnavailable,
    CheckpointUnsupported,
)

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
DEFAULT_PORT = 50070


class WebHdfsDriver(FsspecDriver):
    """A folder on HDFS, reached over HTTP.

    Raises:
        CheckpointUnsupported: if fsspec or requests is missing, or the URL has no host.
    """

    def _open_file_system(self, url: str) -> tuple[Any, str]:
        self._location = parse_location(url)
        if not self._location.hosts:
            raise CheckpointUnsupported(f"{url} has no host: write webhdfs://host:50070/dir", url=url)
        try:
            from fsspec.implementations.webhdfs import WebHDFS
        except ImportError as error:
            raise CheckpointUnsupported(
                f"{url} needs fsspec and requests: pip install 'edl-elastic[webhdfs]'", url=url
            ) from error
        hosts = [(host, port or DEFAULT_PORT) for host, port in map(split_host, self._location.hosts)]
        fs = WebHDFS(*hosts[0], user=_user(self._location.user), skip_instance_cache=True)
        answer_timeout_s = self._location.timeout_s or ANSWER_TIMEOUT_S
        fs.session.request = _NameNodes(hosts, fs.session.request, answer_timeout_s)
        fs.session.hooks["response"].append(_raise_remote)
        return fs, self._location.path

    def open_write(self, path: str) -> FsspecWriter:
        """See Driver."""
        from fsspec.implementations.webhdfs import WebHDFile

        self._refuse_existing(path)
        full = self._path(path)
        fs = self._fs
        # Its own `open` has no word for the size of an HDFS block; what is given here becomes a part of the request.
        options = {"replication": self._location.replication, "blocksize": self._location.block_size_bytes}
        given = {name: value for name, value in options.items() if value is not None}
        with translated("write", full):
            file = WebHDFile(fs, full, mode="wb", block_size=BLOCK_BYTES, tempdir=fs.tempdir, autocommit=True, **given)
            return WebHdfsWriter(fs, file, full)

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


class WebHdfsWriter(FsspecWriter):
    """A new file on HDFS over HTTP; see Writer."""

    def __init__(self, fs: Any, file: Any, path: str) -> None:
        super().__init__(fs, file, path)
        self._written_bytes = 0

    def write(self, data: memoryview) -> None:
        """See Writer."""
        super().write(data)
        self._written_bytes += len(data)

    def commit(self) -> None:
        """See Writer."""
        super().commit()
        # A DataNode answers "created" although a quota ended the file early.
        with translated("write", self._path):
            missing_bytes = self._written_bytes - self._fs.info(self._path)["size"]
            if not missing_bytes:
                return
            folder = self._folder_without_space(missing_bytes)
        detail = f"cannot write {self._path}: {missing_bytes} of {self._written_bytes} bytes did not arrive"
        if folder is not None:
            raise CheckpointQuota(f"{detail}; the space quota of {folder} is used up: raise it, or lower keep")
        raise CheckpointUnavailable(detail, url=self._path, operation="write")

    def _folder_without_space(self, wanted_bytes: int) -> str | None:
        """The nearest folder above the file whose space quota has less left than is wanted."""
        folder = self._path
        while folder not in ("", "/"):
            folder = folder.rpartition("/")[0]
            summary = self._fs.content_summary(folder or "/")
            if 0 <= summary["spaceQuota"] < summary["spaceConsumed"] + wanted_bytes:
                return folder or "/"
        return None


class _NameNodes:
    """Sends requests to the NameNode that served last, and to the next one while they are dead or standby.

    Args:
        hosts: (host, port) of each; requests are made out to the first.
        request: what sends one.
        answer_timeout_s: longest silence of a server; without it requests waits for ever.
    """

    def __init__(self, hosts: list[tuple[str, int]], request: Callable[..., Any], answer_timeout_s: float) -> None:
        self._bases = [f"http://{host}:{port}/" for host, port in hosts]
        self._request = request
        self._timeouts_s = (CONNECT_TIMEOUT_S, answer_timeout_s)
        self._serving = 0

    def __call__(self, method: str, url: str, **options: Any) -> Any:
        """As `requests.Session.request`."""
        options["timeout"] = self._timeouts_s
        if not url.startswith(self._bases[0]):
            return self._request(method, url, **options)  # a DataNode
        rest = url.removeprefix(self._bases[0])
        for left in reversed(range(len(self._bases))):
            try:
                return self._request(method, self._bases[self._serving] + rest, **options)
            except (OSError, RuntimeError) as error:
                # ConnectionError and time-outs of requests are OSErrors; what a NameNode said is an answer.
                if left == 0 or not _is_elsewhere(error):
                    raise
                self._serving = (self._serving + 1) % len(self._bases)
        raise AssertionError("the last NameNode returns or raises")


def _is_elsewhere(error: Exception) -> bool:
    """Whether another NameNode may serve what this one did not."""
    from requests import ConnectionError as Unreachable

    return isinstance(error, Unreachable) or "StandbyException" in str(error)


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
