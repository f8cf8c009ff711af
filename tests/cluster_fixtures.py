"""A cluster of one test. Files whose tests share one, or start theirs with options, have a fixture of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """ZooKeeper and a JobServer, without a node; at the end all of it stops in order, and nothing may be left."""
    found = Cluster(tmp_path)
    try:
        found.start()
        yield found
    finally:
        found.close()
