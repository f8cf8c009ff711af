"""The cases on HDFS: one NameNode and two DataNodes on this machine, replication 2.

durable-hdfs compares with the raw stream of the same client: the same bytes, create, write, hsync, close.
latest-1000 asks for the newest of a thousand checkpoints, each a folder with a manifest.
"""

import itertools
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import local_hdfs
import torch

from bench.checkpoint.local import figures
from bench.checkpoint.systems import CHUNK_BYTES, Weights
from bench.rows import Row, row
from checkpoints import CheckpointManager, TrainStatus
from checkpoints.drivers import opened
from checkpoints.layout import AttemptName, Manifest

CHECKPOINTS = 1000


@contextmanager
def cluster(folder: Path) -> Iterator[Any]:
    """A LocalHdfs that is ended with the block."""
    with tempfile.TemporaryDirectory(prefix="edl-bench-hdfs-", dir=folder) as base:
        found = local_hdfs.LocalHdfs(Path(base), say=lambda text: print(text, file=sys.stderr))
        try:
            found.start()
            yield found
        finally:
            found.stop()


def durable(url: str, model: Weights, runs: int) -> list[Row]:
    """Rows of durable-hdfs, the systems in turns; what was written is removed after each."""
    raw = torch.cat([value.detach().reshape(-1).view(torch.uint8) for value in model.parameters()])
    found: dict[str, list[float]] = {"edl": [], "raw": []}
    with CheckpointManager(f"{url}/edl", keep=1) as manager:
        numbers = itertools.count(1)
        for run in range(runs + 1):
            for name in ("edl", "raw") if run % 2 else ("raw", "edl"):
                began_s = time.perf_counter()
                if name == "edl":
                    manager.save(TrainStatus(global_step=next(numbers)), model=model)
                    manager.wait()
                else:
                    _stream(url, memoryview(raw.numpy()))  # type: ignore[arg-type]
                took_s = time.perf_counter() - began_s
                if run:
                    found[name].append(took_s)
    return [
        item
        for name, seconds in found.items()
        for item in figures("durable-hdfs", name, seconds, found["raw"], model.size_bytes)
    ]


def _stream(url: str, data: memoryview) -> None:
    import hdfs_native

    address, _, folder = url.removeprefix("hdfs://").partition("/")
    client: Any = hdfs_native.Client(f"hdfs://{address}")  # its types lack hsync, which it has
    path = f"/{folder}/raw"
    client.mkdirs(f"/{folder}", 0o755, True)
    client.delete(path, False)
    file = client.create(path, hdfs_native.WriteOptions())
    for begin in range(0, len(data), CHUNK_BYTES):
        file.write(data[begin : begin + CHUNK_BYTES])
    file.hsync()
    file.close()


def latest(url: str, runs: int) -> list[Row]:
    """Rows of latest-1000: seconds for latest(), and for the listing of the same folder alone."""
    seconds: dict[str, list[float]] = {"edl": [], "listing": []}
    with opened(url) as driver:
        driver.make_dirs("")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: _commit(driver, number), range(1, CHECKPOINTS + 1)))
        for _ in range(runs + 1):
            with CheckpointManager(url) as manager:
                began_s = time.perf_counter()
                found = manager.latest()
                seconds["edl"].append(time.perf_counter() - began_s)
                assert found is not None
                assert found.number == CHECKPOINTS
            began_s = time.perf_counter()
            driver.list_dir("")
            seconds["listing"].append(time.perf_counter() - began_s)
    return [row("latest-1000", name, "seconds", "s", values[1:]) for name, values in seconds.items()]


def _commit(driver: Any, number: int) -> None:
    attempt = AttemptName(0, number, number, secrets.token_hex(6))
    driver.make_dirs(str(attempt))
    driver.write_once(f"{attempt}/manifest.json", Manifest(attempt, TrainStatus(global_step=number), (), "").to_bytes())


def measure(model: Weights, folder: Path, runs: int, cases: Sequence[str]) -> list[Row]:
    """Rows of the cases asked for."""
    rows = []
    with cluster(folder) as hdfs:
        if "durable-hdfs" in cases:
            rows += durable(f"{hdfs.url}/durable", model, runs)
        if "latest-1000" in cases:
            rows += latest(f"{hdfs.url}/latest", runs)
    return rows
