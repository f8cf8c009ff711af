"""The file systems that the checkpoint functions of Paddle EDL take, for scripts that come from there.

They only say where a path lies; `save_checkpoint` and `load_checkpoint` take one as `fs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath

from checkpoints.drivers.base import Driver
from checkpoints.drivers.location import SCHEMES
from checkpoints.errors import CheckpointUnsupported


@dataclass(frozen=True)
class LocalFS:
    """A disk of this machine."""


@dataclass(frozen=True)
class HDFSClient:
    """HDFS; no Hadoop install is needed.

    Attributes:
        hadoop_home: taken and not used: nothing here shells out to `hadoop fs`.
        configs: "fs.default.name" is the NameNode, "hadoop.job.ugi" is "user,password".
        time_out, sleep_inter: taken and not used, in ms: calls end by themselves, see decision 004.
    """

    hadoop_home: str | None = None
    configs: Mapping[str, str] = field(default_factory=dict)
    time_out: int = 5 * 60 * 1000
    sleep_inter: int = 1000


#: What `fs` may be: one of the above, a driver by its name, or a Driver.
FileSystem = LocalFS | HDFSClient | str | Driver


def place(
    path: str | PathLike[str], fs: FileSystem | None, hdfs_name: str | None, hdfs_ugi: str | None
) -> tuple[str, str | Driver | None]:
    """The URL and the driver that Paddle's arguments mean.

    Args:
        path: a path, or a URL, which needs no more.
        fs: None takes the URL's scheme.
        hdfs_name: "hdfs://host:port"; for a path without a scheme.
        hdfs_ugi: "user,password" for HDFS; the password is not used.

    Raises:
        CheckpointUnsupported: if the arguments contradict each other.
    """
    path = fspath(path)
    if isinstance(fs, HDFSClient):
        hdfs_name = hdfs_name or fs.configs.get("fs.default.name") or fs.configs.get("fs.defaultFS")
        hdfs_ugi = hdfs_ugi or fs.configs.get("hadoop.job.ugi")
        if hdfs_name is None and "://" not in path:
            raise CheckpointUnsupported('HDFSClient needs configs={"fs.default.name": "hdfs://host:port"}', url=path)
    if isinstance(fs, LocalFS) and (hdfs_name is not None or path.startswith("hdfs://")):
        raise CheckpointUnsupported(f"fs is LocalFS(), but {hdfs_name or path} names HDFS: leave one out", url=path)
    if hdfs_name is not None and "://" not in path:
        path = f"{hdfs_name.rstrip('/')}/{path.lstrip('/')}"
    if hdfs_ugi is not None:
        path = _as_user(path, hdfs_ugi.partition(",")[0])
    return path, None if fs is None or isinstance(fs, (LocalFS, HDFSClient)) else fs


def _as_user(url: str, user: str) -> str:
    scheme, found, rest = url.partition("://")
    if not found or scheme not in SCHEMES:
        raise CheckpointUnsupported(f"hdfs_ugi names a user of HDFS, and {url} is not on HDFS: give hdfs_name", url=url)
    authority, slash, path = rest.partition("/")
    present, at, address = authority.rpartition("@")
    if at and present != user:
        raise CheckpointUnsupported(f"hdfs_ugi asks for the user {user}, and {url} for {present}", url=url)
    return f"{scheme}://{user}@{address}{slash}{path}"
