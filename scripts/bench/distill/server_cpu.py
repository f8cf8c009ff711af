"""What a teacher server spends on a request of 32 uint8 images of 224 x 224 (4.82 MB in, 64 KB out), without a model.

    PYTHONPATH=.:scripts:tests python -m bench.distill.server_cpu

The model's answers lie ready, so what is left is receiving, checking, handing over and sending. Clients send raw
requests over the loopback, whose half of the copying the kernel partly charges to the server as well.
"""

import json
import statistics
import sys
import threading
import time
from typing import Any

import numpy as np
import psutil
from teachers import TeacherProcess

from distill.teacher_client import TeacherClient

CASE, SYSTEM = "server-cpu", "edl"
SHAPE = (32, 3, 224, 224)
CONNECTIONS = 2


def measure(*, runs: int = 5, requests: int = 400) -> list[dict[str, Any]]:
    """Rows: CPU milliseconds of the server per request, and requests a second."""
    cpu_ms, rate = [], []
    with TeacherProcess("teacher_models:zero", "--max-batch", "32", input="image:uint8:3,224,224") as teacher:
        _ask(teacher, requests // 4)  # the buffers' first pages, and what is imported late
        for _ in range(runs):
            used_s, took_s = _ask(teacher, requests)
            cpu_ms.append(used_s / requests * 1000)
            rate.append(requests / took_s)
    return [_row("cpu_ms", "ms", cpu_ms), _row("requests_per_s", "1/s", rate)]


def _ask(teacher: TeacherProcess, requests: int) -> tuple[float, float]:
    """CPU seconds of the server, and seconds, for so many requests over some connections."""
    threads = [threading.Thread(target=_send, args=(teacher, requests // CONNECTIONS)) for _ in range(CONNECTIONS)]
    process = psutil.Process(teacher.pid)
    before_s, begin_s = _cpu_s(process), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _cpu_s(process) - before_s, time.monotonic() - begin_s


def _send(teacher: TeacherProcess, requests: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    with TeacherClient(teacher.url) as client:
        for _ in range(requests):
            outputs, _ = client.infer(teacher.model, {"image": images}, ["output"])
            assert outputs["output"].shape == (32, 1000)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _row(metric: str, unit: str, runs: list[float]) -> dict[str, Any]:
    return {
        "case": CASE,
        "system": SYSTEM,
        "metric": metric,
        "unit": unit,
        "median": round(statistics.median(runs), 4),
        "runs": [round(run, 4) for run in runs],
    }


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=1)
    print()
