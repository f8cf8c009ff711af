"""Drivers, chosen by the scheme of the URL or by name.

    no scheme, file://   file         local disk, with fsync
    hdfs://              hdfs-native  no JVM, no Hadoop install (`pip install 'edl-elastic[hdfs]'`)
                         libhdfs      pyarrow, libhdfs.so and a JVM (`edl-elastic[libhdfs]`)
                         hdfs3        the hdfs3 package and libhdfs3.so (`edl-elastic[hdfs3]`)
    webhdfs://           webhdfs      fsspec over HTTP (`edl-elastic[webhdfs]`)
    anything else        fsspec       the fsspec file system of that scheme (memory://, s3://, gs://, ...)

Where there is a choice, the first is taken unless the URL says otherwise (`hdfs://host:8020/dir?driver=libhdfs`) or
the caller does (`driver="libhdfs"`), who goes before the URL. No environment variable chooses: a URL means the same
for every process that reads it. Client packages are imported only when their driver is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from os import PathLike, fspath
from typing import cast

from checkpoints.drivers.base import Driver
from checkpoints.drivers.location import SCHEMES, parse_location
from checkpoints.errors import CheckpointUnsupported

__all__ = ["DRIVERS", "Driver", "open_driver", "opened"]

_CLASSES = {
    "file": ("local", "LocalDriver"),
    "hdfs-native": ("hdfs_native", "HdfsNativeDriver"),
    "libhdfs": ("libhdfs", "LibhdfsDriver"),
    "hdfs3": ("hdfs3", "Hdfs3Driver"),
    "webhdfs": ("webhdfs", "WebHdfsDriver"),
    "fsspec": ("generic", "FsspecDriver"),
}
#: What `driver=` may be.
DRIVERS = tuple(_CLASSES)

_BY_SCHEME = {"": "file", "file": "file", "hdfs": "hdfs-native", "webhdfs": "webhdfs"}
#: A mistyped URL, or one that went through pathlib; it would be taken for a folder of this machine.
_ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")


def open_driver(url: str | PathLike[str], driver: str | Driver | None = None) -> Driver:
    """A driver bound to the URL; nothing is read or written yet.

    Args:
        url: a local path, or `scheme://...`.
        driver: one of `DRIVERS` to overrule URL and scheme; a Driver is returned as it is.

    Raises:
        CheckpointUnsupported: if the driver is unknown, what it needs is missing, or the URL does not parse.
    """
    if driver is not None and not isinstance(driver, str):
        return driver
    url = fspath(url)
    if not url:
        raise CheckpointUnsupported("the checkpoint URL is empty: give a folder or a URL such as hdfs://host:8020/dir")
    if _ONE_SLASH.match(url):
        raise CheckpointUnsupported(
            f"{url} is no URL: that has two slashes after its scheme, and is a string, not a Path (a folder of this "
            f"name is ./{url})",
            url=url,
        )
    scheme = url.partition("://")[0] if "://" in url else ""
    in_url = parse_location(url).driver if scheme in SCHEMES else None
    name = driver or in_url or _BY_SCHEME.get(scheme, "fsspec")
    if name not in _CLASSES:
        raise CheckpointUnsupported(f"there is no driver {name!r}: choose one of {', '.join(DRIVERS)}", url=url)
    module, class_name = _CLASSES[name]
    make = cast(Callable[[str], Driver], getattr(import_module(f"checkpoints.drivers.{module}"), class_name))
    return make(url)


@contextmanager
def opened(url: str | PathLike[str], driver: str | Driver | None = None) -> Iterator[Driver]:
    """As `open_driver`; leaving closes the driver, unless it is the caller's own."""
    found = open_driver(url, driver)
    try:
        yield found
    finally:
        if found is not driver:
            found.close()
