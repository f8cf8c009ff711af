"""A real SIGKILL at every operation of a save, in a process of its own each time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
#: at least: list, make the folder, create, write and commit a shard, the manifest, the hint
LEAST_OPERATIONS = 6


@pytest.mark.parametrize(("how", "after"), [("async", "before"), ("async", "after"), ("sync", "before")])
def test_sigkill_at_every_operation_of_a_save_loses_only_that_save(tmp_path: Path, how: str, after: str) -> None:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, str(ROOT / "tests/jobs/killed_saves.py"), str(tmp_path), how, after]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) >= LEAST_OPERATIONS
