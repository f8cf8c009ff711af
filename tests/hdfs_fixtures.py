"""A real HDFS for the tests: one for the whole run, started when a test first asks for it, a fresh folder per test.

Tests that kill a part of it start one of their own with `new_hdfs`.
"""

from __future__ import annotations

import functools
import importlib
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _script() -> ModuleType:
    """scripts/local_hdfs.py as a module; it stands beside the jars' module, not in a package."""
    folder = str(Path(__file__).parents[1] / "scripts")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("local_hdfs")


@pytest.fixture(scope="session")
def new_hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Starts one more LocalHdfs at each call; all are stopped at the end of the run."""
    script = _script()
    started: list[Any] = []

    def start(**options: Any) -> Any:
        say = functools.partial(print, file=sys.stderr)
        cluster = script.LocalHdfs(tmp_path_factory.mktemp("hdfs"), say=say, **options)
        started.append(cluster)
        cluster.start()
        return cluster

    yield start
    for cluster in started:
        cluster.stop()


@pytest.fixture(scope="session")
def hdfs(new_hdfs: Callable[..., Any]) -> Any:
    """The LocalHdfs that all tests share; do not kill its parts."""
    return new_hdfs()


@pytest.fixture
def hdfs_url(hdfs: Any) -> str:
    """A folder of this test alone, as hdfs://127.0.0.1:PORT/..."""
    return f"{hdfs.url}/test-{secrets.token_hex(6)}"


@pytest.fixture
def webhdfs_url(hdfs: Any) -> str:
    """A folder of this test alone, as webhdfs://127.0.0.1:PORT/..."""
    return f"{hdfs.webhdfs_url}/test-{secrets.token_hex(6)}"


@pytest.fixture(scope="module")
def libhdfs() -> Iterator[None]:
    """libhdfs.so and Hadoop's classes, as a site with a Hadoop install has them; a JVM starts in this process."""
    jars, build = importlib.import_module("hadoop_jars"), importlib.import_module("libhdfs_build")
    say = functools.partial(print, file=sys.stderr)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARROW_LIBHDFS_DIR", str(build.fetch_libhdfs(jars.default_cache_dir(), say)))
        patch.setenv("CLASSPATH", f"{jars.fetch_hadoop(jars.default_cache_dir(), say)}/*")
        patch.setenv("LIBHDFS_OPTS", "-Xmx192m -XX:+UseSerialGC -XX:TieredStopAtLevel=1")
        patch.setenv("JAVA_HOME", str(build.java_home()))
        yield


@pytest.fixture
def libhdfs_url(hdfs_url: str, libhdfs: None) -> str:
    """A folder of this test alone, through libhdfs."""
    return f"{hdfs_url}?driver=libhdfs&replication=2"
