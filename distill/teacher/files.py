"""Whole files by path or URL: models and weights come from wherever checkpoints do (disk, HDFS, any fsspec system)."""

from checkpoints import CheckpointError
from checkpoints.drivers import Driver, open_driver
from checkpoints.drivers.base import CHUNK_BYTES
from distill.errors import ModelError


def read_url(url: str) -> bytearray:
    """The bytes of the file at `url`, a path or scheme://... Raises ModelError."""
    folder, slash, name = url.rpartition("/")
    if not name:
        raise ModelError(f"{url!r} names no file")
    try:
        driver = open_driver((folder or slash) if slash else ".")
        try:
            return _read(driver, name)
        finally:
            driver.close()
    except (CheckpointError, OSError) as error:
        raise ModelError(f"{url} cannot be read: {error}") from error


def _read(driver: Driver, name: str) -> bytearray:
    data = bytearray(driver.info(name).size_bytes)
    view = memoryview(data)
    reader = driver.open_read(name)
    done = 0
    try:
        while count := reader.readinto(view[done : done + CHUNK_BYTES]) if done < len(data) else 0:
            done += count
    finally:
        reader.close()
    if done < len(data):
        raise ModelError(f"{driver.url}/{name} ends at byte {done} of {len(data)}")
    return data
