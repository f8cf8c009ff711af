"""An S3 for the tests: moto's server in a process of its own, started when a test first asks for it."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest
from local_hdfs import _die_with_parent

BUCKET = "edl-tests"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a server with one bucket."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=_die_with_parent
    ) as server:
        assert server.stderr is not None
        try:
            address = next((line.split()[-1] for line in server.stderr if "Running on http" in line), "")
            assert address, f"moto ended with {server.wait()}"
            yield address
        finally:
            server.kill()


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of this test alone, as s3://BUCKET/...; the endpoint and the keys are in the environment, as usual."""
    import s3fs

    settings = {"AWS_ENDPOINT_URL": s3_endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    for name, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem(skip_instance_cache=True).makedirs(BUCKET, exist_ok=True)
    return f"s3://{BUCKET}/test-{secrets.token_hex(6)}"
