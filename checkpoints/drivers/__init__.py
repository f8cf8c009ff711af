"""Drivers, chosen by the scheme of the URL or by name.

    no scheme, file://   local disk, with fsync
    hdfs://              hdfs-native: no JVM, no Hadoop install (`pip install 'edl-elastic[hdfs]'`)
    webhdfs://           fsspec over HTTP (`pip install 'edl-elastic[webhdfs]'`)
    anything else        the fsspec file system of that scheme (memory://, s3://, gs://, ...)

Client packages are imported only when their scheme is used. The HDFS user is HADOOP_USER_NAME, else the login name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from checkpoints.drivers.base import Driver
from checkpoints.errors import CheckpointUnsupported

__all__ = ["DRIVERS", "Driver", "open_driver", "opened"]

#: What `driver=` may be.
DRIVERS = ("file", "hdfs-native", "webhdfs", "fsspec")

_BY_SCHEME = {"": "file", "file": "file", "hdfs": "hdfs-native", "webhdfs": "webhdfs"}


def open_driver(url: str, driver: str | Driver | None = None) -> Driver:
    """A driver bound to the URL; nothing is read or written yet.

    Args:
        url: a local path, or `scheme://...`.
        driver: one of `DRIVERS` to overrule the scheme; a Driver is returned as it is.

    Raises:
        CheckpointUnsupported: if the driver is unknown, its package is missing, or the URL does not parse.
    """
    if driver is not None and not isinstance(driver, str):
        return driver
    if not url:
        raise CheckpointUnsupported("the checkpoint URL is empty: give a folder or a URL such as hdfs://host:8020/dir")
    scheme = url.partition("://")[0] if "://" in url else ""
    name = driver or _BY_SCHEME.get(scheme, "fsspec")
    if name == "file":
        from checkpoints.drivers.local import LocalDriver

        return LocalDriver(url)
    if name == "hdfs-native":
        from checkpoints.drivers.hdfs_native import HdfsNativeDriver

        return HdfsNativeDriver(url)
    if name == "webhdfs":
        from checkpoints.drivers.webhdfs import WebHdfsDriver

        return WebHdfsDriver(url)
    if name == "fsspec":
        from checkpoints.drivers.generic import FsspecDriver

        return FsspecDriver(url)
    raise CheckpointUnsupported(f"there is no driver {name!r}: choose one of {', '.join(DRIVERS)}", url=url)


@contextmanager
def opened(url: str, driver: str | Driver | None = None) -> Iterator[Driver]:
    """As `open_driver`; leaving closes the driver, unless it is the caller's own."""
    found = open_driver(url, driver)
    try:
        yield found
    finally:
        if found is not driver:
            found.close()
