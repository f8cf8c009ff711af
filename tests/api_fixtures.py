"""A JobServer of one test, in its process (api_server.py). Files that prepare theirs have a fixture of their own."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from api_server import Server


@pytest.fixture
def server() -> "Iterator[Server]":
    """Its loop turns when the test says so; at the end it has let go of the lead and of who it watched."""
    from api_server import Server  # the web stack: only for those who ask

    found = Server()
    yield found
    found.controller.stop()
