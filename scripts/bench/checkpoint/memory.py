"""Case memory: how much the peak of a process's memory rises when it saves, each system in a process of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.rows import Row, row

SYSTEMS = ("edl", "edl-sync", "torch.save", "safetensors", "dcp", "dcp-async")
SAVES = 2


def measure(size_bytes: int, folder: Path, runs: int) -> list[Row]:
    """Rows: extra MiB at the peak, and as a part of the state."""
    found: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    for _ in range(runs):
        for name in SYSTEMS:
            with tempfile.TemporaryDirectory(prefix="edl-bench-", dir=folder) as base:
                command = [sys.executable, "-m", "bench.checkpoint.memory", name, str(size_bytes), base]
                done = subprocess.run(command, env=os.environ, check=True, capture_output=True, text=True)
                found[name].append(float(done.stdout))
    rows = []
    for name, extra in found.items():
        rows.append(row("memory", name, "extra_mib", "MiB", [value / 2**20 for value in extra]))
        rows.append(row("memory", name, "ratio", "1", [value / size_bytes for value in extra]))
    return rows


def _extra(name: str, size_bytes: int, folder: Path) -> int:
    """Bytes by which saving raises the peak over what the process with its state had. A small save comes before, for
    the modules that it imports."""
    from bench.checkpoint.systems import Weights, make

    small = make(name, Weights(4 << 20), folder / "small")
    small.save()
    small.close()
    model = Weights(size_bytes)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that is over
    before = _peak_bytes()
    system = make(name, model, folder / "large")
    for _ in range(SAVES):
        system.save()
    return _peak_bytes() - before


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) << 10


if __name__ == "__main__":
    print(_extra(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
