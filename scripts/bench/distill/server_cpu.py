"""What a teacher server spends on a request of 32 uint8 images of 224 x 224 (4.82 MB in, 64 KB out), without a model.

The model's answers lie ready, so what is left is receiving, checking, handing over and sending. Clients send raw
requests over the loopback, whose half of the copying the kernel partly charges to the server as well.
"""

import threading
import time

import numpy as np
import psutil
from teachers import TeacherProcess

from bench.rows import Row, row
from distill.teacher_client import TeacherClient

CASE, SYSTEM = "server-cpu", "edl"
SHAPE = (32, 3, 224, 224)
#: one connection is what a request costs; with several, clients and server compete for caches and cores
CONNECTIONS = (1, 4)


def measure(runs: int = 5, *, requests: int = 400) -> list[Row]:
    """Rows: CPU milliseconds of the server per request with one connection and with four, and requests a second."""
    cpu_ms: dict[int, list[float]] = {count: [] for count in CONNECTIONS}
    rate: dict[int, list[float]] = {count: [] for count in CONNECTIONS}
    with TeacherProcess("teacher_models:zero", "--max-batch", "32", input="image:uint8:3,224,224") as teacher:
        for _ in range(runs + 1):
            for count in CONNECTIONS:
                used_s, took_s = _ask(teacher, requests, count)
                cpu_ms[count].append(used_s / requests * 1000)
                rate[count].append(requests / took_s)
    rows = []
    for count in CONNECTIONS:
        suffix = "" if count == 1 else f"_{count}_connections"  # the first run warms up
        rows += [
            row(CASE, SYSTEM, "cpu_ms" + suffix, "ms", cpu_ms[count][1:]),
            row(CASE, SYSTEM, "rate" + suffix, "1/s", rate[count][1:]),
        ]
    return rows


def _ask(teacher: TeacherProcess, requests: int, connections: int) -> tuple[float, float]:
    """CPU seconds of the server, and seconds, for so many requests over some connections."""
    threads = [threading.Thread(target=_send, args=(teacher, requests // connections)) for _ in range(connections)]
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
