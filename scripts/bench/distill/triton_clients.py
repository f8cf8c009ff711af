"""What Triton's clients cost for the request of case client-cpu-tcp: 32 uint8 images in, [32, 1000] FP16 out.

Each runs in a process of its own, all of whose CPU it is (gRPC has threads, and must not be where a loader forks). The
HTTP client asks the same teacher server as this project's student; the gRPC client a server of grpcio that does
nothing (grpc_server.py).

    python -m bench.distill.triton_clients SYSTEM URL MODEL   # for each line with a number of requests, prints CPU ms
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

SYSTEMS = {"tritonclient-http": ("tritonclient",), "tritonclient-grpc": ("tritonclient", "grpc")}
SHAPE = (32, 3, 224, 224)
_WARM_UP = 5

#: CPU milliseconds of a request, as the mean of so many
Measure = Callable[[int], float]


def missing(system: str) -> str | None:
    """Why a client cannot be measured here, None if it can."""
    absent = [package for package in SYSTEMS[system] if find_spec(package) is None]
    return f"{absent[0]} is not installed: scripts/setup.sh --extras bench" if absent else None


@contextmanager
def client(system: str, url: str, model: str) -> Iterator[Measure]:
    """A process of one of SYSTEMS; `url` is what the HTTP client asks."""
    with _running("bench.distill.triton_clients", system, url, model) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def measure(requests: int) -> float:
            print(requests, file=asked, flush=True)
            return float(answers.readline())

        yield measure


@contextmanager
def _running(*module: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", *module]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _serve(triton: Any, address: str, model: str) -> None:
    """Measure for each line of standard input."""
    asked = triton.InferenceServerClient(address)
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)

    def ask(requests: int) -> None:
        for _ in range(requests):
            image = triton.InferInput("image", list(pixels.shape), "UINT8")
            image.set_data_from_numpy(pixels)
            assert asked.infer(model, [image]).as_numpy("output").shape == (SHAPE[0], 1000)

    ask(_WARM_UP)
    for line in sys.stdin:
        before_s = time.process_time()
        ask(int(line))
        print((time.process_time() - before_s) / int(line) * 1e3, flush=True)


def main(system: str, url: str, model: str) -> None:
    """The process of a client."""
    if system == "tritonclient-http":
        _serve(import_module("tritonclient.http"), url.removeprefix("http://"), model)
        return
    with _running("bench.distill.grpc_server") as server:
        assert server.stdout is not None
        _serve(import_module("tritonclient.grpc"), f"127.0.0.1:{server.stdout.readline().strip()}", model)


if __name__ == "__main__":
    main(*sys.argv[1:])
