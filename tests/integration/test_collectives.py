"""Collectives, the equality of ranks and the batch policies in real Horovod worlds of one, two and three processes.

collective_ranks.py holds the checks; here each of them becomes a test, for every world.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import collective_ranks
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

SCRIPT = Path(collective_ranks.__file__)
HOROVODRUN = Path(sys.executable).parent / "horovodrun"
Results = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda size: f"{size} ranks")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each rank of one world found."""
    size: int = request.param
    folder = tmp_path_factory.mktemp("ranks")
    launcher = [] if size == 1 else [str(HOROVODRUN), "-np", str(size), "--network-interfaces", "lo"]
    environ = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"}
    environ["HOROVOD_GLOO_TIMEOUT_SECONDS"] = "20"  # ranks that got out of step are to fail, not to wait
    command = [*launcher, sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100)
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    assert {rank["size"] for rank in found} == {size}, done.stdout + done.stderr
    return found


@pytest.mark.parametrize("check", [check.__name__ for check in collective_ranks.CHECKS])
def test_on_every_rank(results: Results, check: str) -> None:
    found = [rank["checks"].get(check, "not reached") for rank in results]
    assert found == ["ok"] * results[0]["size"], "\n".join(found)
