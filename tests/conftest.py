"""What all tests share: a real ZooKeeper server per session, and skips that count as failures on request."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from jobserver.local_zookeeper import LocalZooKeeper

# A busy machine is no failure of the code: pytest's own time limit bounds each test.
settings.register_profile("edl", deadline=None)
settings.load_profile("edl")

pytest_plugins = ["api_fixtures", "cluster_fixtures", "hdfs_fixtures", "s3_fixtures"]

# More threads than that only wait for each other, spinning, in the many processes of the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --no-skips, which CI=true in the environment implies."""
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failure (implied by CI=true)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files that keep all processors busy (e2e) take turns with those that mostly wait.

    Whoever runs several files at a time takes them in this order, with xdist --no-loadscope-reorder.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    kinds = [[path for path in files if ("e2e" in path.parts) is busy] for busy in (True, False)]
    turns = {path: (place + 0.5) / len(kind) for kind in kinds for place, path in enumerate(kind)}
    items[:] = [item for path in sorted(files, key=turns.__getitem__) for item in files[path]]


def _skips_fail(config: pytest.Config) -> bool:
    return bool(config.getoption("--no-skips")) or os.environ.get("CI", "").lower() in {"1", "true"}


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        where = report.longrepr
        reason = where[2] if isinstance(where, tuple) else where
        report.outcome = "failed"
        report.longrepr = f"{reason} (a skip is a failure here: CI or --no-skips)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the report of a skipped test into a failure, if nothing may be skipped."""
    report = yield
    if _skips_fail(item.config):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself while it is collected."""
    report = yield
    if _skips_fail(collector.config):
        _fail_if_skipped(report)
    return report


@pytest.fixture(scope="session")
def zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The hosts string of a real, private ZooKeeper server, stopped at the end of the session."""
    data_dir: Path = tmp_path_factory.mktemp("zookeeper")
    with LocalZooKeeper(data_dir) as server:
        yield server.hosts
