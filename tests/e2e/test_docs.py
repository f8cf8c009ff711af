"""The pages that show how a script becomes elastic: their scripts, diffs and commands run as printed."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import ROOT, Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language, in order."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def patched(script: str, diff: str) -> str:
    """`script` after a diff whose lines of context and removal are all of the lines it touches."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert script.count(before) == 1, "the diff does not fit its script"
    return script.replace(before, after)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A node of two slots, and a folder in which `edl`, `python` and `scripts/` are found."""
    edl = tmp_path / "bin" / "edl"
    edl.parent.mkdir()
    edl.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jobserver.cli.main "$@"\n')
    edl.chmod(0o755)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    path = f"{edl.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    cluster = Cluster(tmp_path, environ={"PATH": path, "OMP_NUM_THREADS": "1"})
    try:
        cluster.start().add_node("a", slots=2)
        yield cluster
    finally:
        cluster.close()


def shell(cluster: Cluster, commands: str) -> str:
    """Run the commands of a page, with the interface that a single machine needs."""
    commands = commands.replace("horovodrun ", "horovodrun --network-interfaces lo ")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env=cluster.environ, cwd=cluster.base, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def accuracies(said: str) -> list[float]:
    return [float(number) for number in re.findall(r"epoch 4: accuracy ([\d.]+)", said)]


def test_from_pytorch(cluster: Cluster) -> None:
    (plain,) = blocks("from-pytorch.md", "python")
    (diff,) = blocks("from-pytorch.md", "diff")
    added = [line for line in diff.splitlines() if line.startswith("+") and line != "+"]
    assert len(added) <= 12  # "about ten"
    script = cluster.base / "train.py"
    script.write_text(plain)
    (reference,) = accuracies(shell(cluster, "python train.py"))

    script.write_text(patched(plain, diff))
    by_hand, as_job = blocks("from-pytorch.md", "sh")
    alone, *both = accuracies(shell(cluster, by_hand))
    assert len(both) == 2
    assert min(reference, alone, *both) > 0.85
    assert both == pytest.approx([alone, alone], abs=0.02)  # the same global batches in the same order

    as_job = as_job.replace("file:///tmp/digits", f"file://{cluster.base}/ckpt")
    assert "digits" in shell(cluster, as_job)
    cluster.wait_for_phase("digits", "succeeded")
    assert [event["fields"]["epoch"] for event in cluster.events("digits", "epoch")] == list(range(5))


def test_from_horovod(cluster: Cluster) -> None:
    (plain,) = blocks("from-horovod.md", "python")
    (diff,) = blocks("from-horovod.md", "diff")
    own, external = blocks("from-horovod.md", "sh")
    script = cluster.base / "train.py"
    script.write_text(plain)
    assert "rank 0: 50 batches" in shell(cluster, external)
    assert cluster.job("ext")["phase"] == "stopped"

    script.write_text(patched(plain, diff))
    shell(cluster, own)
    cluster.wait_for_phase("own", "succeeded")
    said = "".join(path.read_text() for path in cluster.base.glob("logs/*/*.log"))
    assert "rank 0: 50 batches" in said
