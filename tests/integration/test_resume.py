"""Resuming alone, in another process: where training goes on, and which checkpoint is the newest afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import ROOT, TINY_JOB

from checkpoints import list_checkpoints, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.integration


def train(url: str, epochs: int) -> str:
    """Run the small job alone until it has completed `epochs` epochs; returns what it said."""
    environ = {**os.environ, "EDL_CHECKPOINT_URL": url, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TINY_JOB), "--epochs", str(epochs), "--samples", "128"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_resumed_run_saves_above_the_job_that_it_continues(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/ckpt"
    train(url, 1)
    first = load_checkpoint(url)
    assert first is not None
    assert first.status.epoch_no == 0
    # The same state as a job saved it whose driver had been replaced six times.
    save_checkpoint(url, first.status, state=first.state, driver_epoch=7)
    train(url, 2)
    newest = load_checkpoint(url)
    assert newest is not None
    assert newest.status.epoch_no == 1
    assert list_checkpoints(url)[0].driver_epoch == 7
