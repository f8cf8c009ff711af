"""Sweep a teacher's batch size and the number of connections: rates, latencies, CPU for each request.

Requests are sent as students send them: over keep-alive connections of one thread, one request at a time each, from
buffers that are filled once. A teacher by its URL, or one that is started here, whose CPU is measured as well.
"""

import argparse
import json
import math
import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from distill import oip
from distill.connection import EVENTS, Connection
from distill.errors import ConfigError, DistillError
from distill.source import parse_teachers
from distill.teacher.local import LocalTeachers
from distill.teacher_client import TeacherClient

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "resnet50_pod"
#: what is served when nothing else is named: a small CNN with random weights, images of 32 x 32
DEFAULT = ["--model", "models:build_model", "--model-args", '{"name": "tiny", "classes": 1000}', "--threads", "1"]
DEFAULT += ["--input", "image:uint8:3,32,32", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
ANSWER_TIMEOUT_S = 60.0

EPILOG = """\
examples:
  scripts/qps.sh                                         # a tiny teacher of its own, 1 to 32 samples
  scripts/qps.sh --url 10.0.0.5:8500 --depths 1,4,16     # one that runs
  scripts/qps.sh -- --model teacher.pt2 --gpu_ids 0      # one of these options of edl teacher serve
"""


@dataclass(frozen=True)
class Figures:
    """One row: `requests` were answered in `seconds`."""

    batch: int
    depth: int
    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    client_cpu_ms: float
    #: for each request; None: the teacher was not started here
    server_cpu_ms: float | None

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds

    @property
    def samples_per_s(self) -> float:
        return self.requests_per_s * self.batch


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def request_of(metadata: oip.ModelMetadata, batch: int, host: str, token: str | None) -> list[bytes | memoryview]:
    """Buffers of an HTTP request with random pixels, and zeros for other inputs. Raises ConfigError for open shapes."""
    heads, arrays = [], []
    for spec in metadata.inputs:
        shape = (batch, *spec.shape[1:])
        if min(shape) < 1:
            raise ConfigError(f"input {spec.name!r} has the open shape {list(spec.shape)}: serve one with fixed sizes")
        dtype = np.dtype(oip.DATATYPES[spec.datatype][1])
        values = np.zeros(shape, dtype)
        if spec.datatype == "UINT8":
            values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        heads.append(oip.binary(spec.name, spec.datatype, shape))
        arrays.append(values.tobytes())
    head = oip.encode(oip.InferRequest(tuple(heads), parameters={"binary_data_output": True}))
    lines = [f"POST /v2/models/{quote(metadata.name, safe='')}/infer HTTP/1.1", f"Host: {host}"]
    lines += [f"{oip.HEADER_LENGTH}: {len(head)}", f"Content-Length: {len(head) + sum(map(len, arrays))}"]
    lines += [] if token is None else [f"Authorization: Bearer {token}"]
    return ["\r\n".join([*lines, "", ""]).encode(), head, *arrays]


def measure(
    address: tuple[str, int], request: list[bytes | memoryview], depth: int, seconds: float
) -> tuple[list[float], float]:
    """Latencies in seconds of requests over `depth` connections, and how long it took. Raises DistillError."""
    latencies: list[float] = []
    with ExitStack() as stack:
        poll = stack.enter_context(select.epoll())
        connections = [Connection(address) for _ in range(depth)]
        by_fd = {connection.fileno(): connection for connection in connections}
        began: dict[int, float] = {}
        begin_s = time.monotonic()
        for fd, connection in by_fd.items():
            stack.callback(connection.close)
            began[fd] = begin_s
            connection.request(request)
            poll.register(fd, EVENTS)
        while began:
            events = poll.poll(ANSWER_TIMEOUT_S)
            if not events:
                raise DistillError(f"no answer for {ANSWER_TIMEOUT_S:g} s")
            for fd, _ in events:
                _go_on(by_fd[fd], fd, began, latencies, request, begin_s + seconds)
        return latencies, time.monotonic() - begin_s


def _go_on(
    connection: Connection,
    fd: int,
    began: dict[int, float],
    latencies: list[float],
    request: list[bytes | memoryview],
    end_s: float,
) -> None:
    """Take what a connection has; send the next request until the end."""
    answer = connection.ready()
    if answer is None:
        return
    if answer.status != 200:
        raise DistillError(f"the teacher answered {answer.status}: {oip.decode_error(bytes(answer.body))}")
    now_s = time.monotonic()
    latencies.append(now_s - began.pop(fd))
    if now_s < end_s:
        began[fd] = now_s
        connection.request(request)


def sweep(url: str, args: argparse.Namespace, pid: int | None) -> list[Figures]:
    """A row for each batch size and depth."""
    token = os.environ.get("EDL_TEACHER_TOKEN")
    with TeacherClient(url, token=token) as client:
        names = (args.model,) if args.model else client.models()
        if not names:
            raise ConfigError(f"the teacher at {url} does not say what it serves: name it with --model-name")
        metadata = client.metadata(names[0])
    parts = urlsplit(url)
    assert parts.hostname is not None  # parse_teachers saw to both
    assert parts.port is not None
    rows = []
    for batch in args.batches:
        request = request_of(metadata, batch, parts.netloc, token)
        for depth in args.depths:
            measure((parts.hostname, parts.port), request, depth, min(0.2, args.seconds))  # warms up
            server = None if pid is None else psutil.Process(pid)
            before = (time.process_time(), _cpu_s(server))
            latencies, took_s = measure((parts.hostname, parts.port), request, depth, args.seconds)
            client_s, server_s = time.process_time() - before[0], _cpu_s(server) - before[1]
            count = len(latencies)
            of_server = None if server is None else server_s / count * 1000
            p50, p99 = (percentile(latencies, share) * 1000 for share in (0.5, 0.99))
            rows.append(Figures(batch, depth, count, took_s, p50, p99, client_s / count * 1000, of_server))
    return rows


def _cpu_s(process: "psutil.Process | None") -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return float(times.user + times.system)


def print_table(rows: Sequence[Figures], console: Console) -> None:
    table = Table(box=None, header_style="bold")
    names = ("batch", "depth", "requests/s", "samples/s", "p50 ms", "p99 ms", "client ms", "server ms")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        server = "-" if row.server_cpu_ms is None else f"{row.server_cpu_ms:.2f}"
        rates = (f"{row.requests_per_s:,.0f}", f"{row.samples_per_s:,.0f}")
        times = (f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", f"{row.client_cpu_ms:.2f}", server)
        table.add_row(str(row.batch), str(row.depth), *rates, *times)
    console.print(table)


def _numbers(text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"must be whole numbers from 1 with commas between them, not {text!r}")
    return found


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help explains the options)\n")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _OneLineParser(
        prog="scripts/qps.sh", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="HOST:PORT of a teacher that runs (default: one is started)")
    parser.add_argument("--model-name", dest="model", help="at a server with several (default: the first)")
    parser.add_argument("--batches", type=_numbers, default="1,2,4,8,16,32", help="samples a request (%(default)s)")
    parser.add_argument("--depths", type=_numbers, default="1,4", help="connections (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("serve", nargs="*", metavar="-- OPTIONS", help="of the teacher that is started")
    args = parser.parse_args(argv)
    if args.seconds <= 0:
        parser.error(f"--seconds must be positive, not {args.seconds:g}")
    if args.url is not None and args.serve:
        parser.error("--url names a teacher that runs, the options after -- start another: give one of them")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep; exit code 2 with one line for what cannot be, 1 when the teacher fails."""
    args = _arguments(argv)
    try:
        with ExitStack() as stack:
            if args.url is not None:
                url, pid = parse_teachers(args.url)[0].url, None
                if not url.startswith("http://"):
                    raise ConfigError(f"--url {args.url}: only http is measured")
            else:
                folder = None if args.serve else EXAMPLE
                teacher = stack.enter_context(LocalTeachers(*(args.serve or DEFAULT), folder=folder))
                url, pid = teacher.urls[0], teacher.pids[0]
            rows = sweep(url, args, pid)
    except DistillError as error:
        print(f"scripts/qps.sh: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    if args.json is not None:
        args.json.write_text(json.dumps([_as_json(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    print_table(rows, Console(soft_wrap=True))
    return 0


def _as_json(row: Figures) -> dict[str, Any]:
    return {**asdict(row), "requests_per_s": row.requests_per_s, "samples_per_s": row.samples_per_s}


if __name__ == "__main__":
    sys.exit(main())
