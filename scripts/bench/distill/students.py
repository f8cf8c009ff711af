"""What reading through teachers costs a student, and how long one that dies or freezes holds it up.

client-cpu-tcp: CPU of the process that sends, per request of 32 uint8 images of 224 x 224, to a real teacher server
whose model costs nothing, as fast as all go. handover: CPU of the trainer's thread in next(), without what the
DataLoader's own next() takes. teacher-kill, teacher-stop: two teachers, each fast enough alone; the longest time
between two batches beyond the step itself, in the seconds after one was killed with SIGKILL, or stopped with SIGSTOP.
`gap_s` is what a student sees whose loader reads ahead, `gap_s_no_read_ahead` that of one which asks for a batch only
while it works on the one before, and whose teacher fails with its request in hand.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise

from teachers import TeacherProcess, started
from torch.utils.data import dataloader

from bench.distill import triton_clients
from bench.distill.student_data import INPUT, ROWS, compute, images, io_pid, process_cpu_s, reader_of, steps
from bench.rows import Row, row
from distill.reader import DistillReader

#: of a student's step in these cases: slower than the teachers, so that nothing ever waits for them
STEP_S = 0.012
WARM_UP = 40
#: of a student, and of a teacher's answer, where gaps are measured
GAP_STEP_S = 0.03


def zero_teacher() -> TeacherProcess:
    """A teacher whose answers lie ready."""
    return TeacherProcess("teacher_models:zero", "--max-batch", str(ROWS), input=INPUT)


def client_cpu(runs: int = 5, requests: int = 300) -> list[Row]:
    """Rows for this project's IO process and, in turns with it, for the clients of Triton."""
    ours, server = [], []
    reasons = {system: triton_clients.missing(system) for system in triton_clients.SYSTEMS}
    theirs: dict[str, list[float]] = {system: [] for system, reason in reasons.items() if reason is None}
    with started(zero_teacher()) as (teacher,), ExitStack() as stack:
        reader = stack.enter_context(reader_of(images((runs + 1) * (WARM_UP + requests) + 100), [teacher]))
        batches = iter(reader)
        steps(batches, WARM_UP, 0.0)
        peers = {s: stack.enter_context(triton_clients.client(s, teacher.url, teacher.model)) for s in theirs}
        for _ in range(runs):
            steps(batches, WARM_UP, 0.0)
            before_s, server_s = process_cpu_s(io_pid(reader)), process_cpu_s(teacher.pid)
            steps(batches, requests, 0.0)
            ours.append((process_cpu_s(io_pid(reader)) - before_s) / requests * 1e3)
            server.append((process_cpu_s(teacher.pid) - server_s) / requests * 1e3)
            for system, measure in peers.items():
                theirs[system].append(measure(requests // 3))
    case = "client-cpu-tcp"
    rows = [row(case, "edl", "cpu_ms", "ms", ours), row(case, "edl", "cpu_ms_teachers", "ms", server)]
    for system, reason in reasons.items():
        if reason is None:
            rows.append(row(case, system, "cpu_ms", "ms", theirs[system]))
        else:
            rows.append({**row(case, system, "failed", "runs", [1.0] * runs), "reason": reason})
    return rows


@contextmanager
def _loader_time() -> Iterator[Callable[[], float]]:
    """Adds up the thread's CPU seconds inside of the DataLoader's own next()."""
    total_s = 0.0
    own = dataloader._BaseDataLoaderIter.__next__

    def timed(iterator: dataloader._BaseDataLoaderIter) -> object:
        nonlocal total_s
        began_s = time.thread_time()
        try:
            return own(iterator)
        finally:
            total_s += time.thread_time() - began_s

    dataloader._BaseDataLoaderIter.__next__ = timed  # type: ignore[assignment, method-assign]
    try:
        yield lambda: total_s
    finally:
        dataloader._BaseDataLoaderIter.__next__ = own  # type: ignore[method-assign]


def handover(runs: int = 5, batches: int = 100) -> list[Row]:
    """Rows: over the loader's own next(), and next() as a whole here and in the stock DataLoader."""
    over, whole, stock = [], [], []
    with started(zero_teacher()) as (teacher,), reader_of(images(WARM_UP + batches), [teacher]) as reader:
        for _ in range(runs):
            with _loader_time() as inside_s:
                left = iter(reader)
                _next_s(left, WARM_UP)
                own_s, all_s = inside_s(), _next_s(left, batches)
                over.append((all_s - (inside_s() - own_s)) / batches * 1e3)
                whole.append(all_s / batches * 1e3)
                del left
            plain = iter(images(WARM_UP + batches))
            _next_s(plain, WARM_UP)
            stock.append(_next_s(plain, batches) / batches * 1e3)
            del plain
    return [
        row("handover", "edl", "cpu_ms", "ms", over),
        row("handover", "edl-next", "cpu_ms", "ms", whole),
        row("handover", "dataloader-next", "cpu_ms", "ms", stock),
    ]


def _next_s(batches: Iterator[object], count: int) -> float:
    """CPU seconds of this thread in `count` calls of next()."""
    used_s = 0.0
    for _ in range(count):
        began_s = time.thread_time()
        next(batches)
        used_s += time.thread_time() - began_s
        compute(STEP_S)
    return used_s


def teacher_kill(runs: int = 5) -> list[Row]:
    return _gap_rows("teacher-kill", TeacherProcess.kill, runs, 1.0)


def teacher_stop(runs: int = 5) -> list[Row]:
    return _gap_rows("teacher-stop", TeacherProcess.freeze, runs, 4.0)


def _gap_rows(case: str, fault: Callable[[TeacherProcess], None], runs: int, watch_s: float) -> list[Row]:
    ahead = [_gap(fault, watch_s, run) for run in range(runs)]
    alone = [_gap_alone(fault, watch_s) for _ in range(runs)]
    return [row(case, "edl", "gap_s", "s", ahead), row(case, "edl", "gap_s_no_read_ahead", "s", alone)]


@contextmanager
def _pair(loader: object, **options: object) -> Iterator[tuple[list[TeacherProcess], DistillReader]]:
    """Two teachers that answer as fast as the student steps, and a reader that uses them."""
    pair = [TeacherProcess("teacher_models:identity", delay_s=GAP_STEP_S, input="image:uint8:3,32,32") for _ in "ab"]
    with started(*pair), reader_of(loader, pair, **options) as reader:
        yield pair, reader


def _busiest(pair: list[TeacherProcess], reader: DistillReader) -> TeacherProcess:
    return max(pair, key=lambda t: (reader.stats.by_teacher or {}).get(_name(t), 0))


def _longest(times: Sequence[float]) -> float:
    return max(b - a for a, b in pairwise(times))


def _gap(fault: Callable[[TeacherProcess], None], watch_s: float, run: int) -> float:
    """The longest gap beyond the step of a student whose step takes as long as a teacher's answer."""
    with _pair(images(1000, size=32)) as (pair, reader):
        left = iter(reader)
        steps(left, 60, GAP_STEP_S)
        fault(_busiest(pair, reader) if run % 2 == 0 else pair[run // 2 % 2])
        return _longest(steps(left, round(watch_s / GAP_STEP_S), GAP_STEP_S)) - GAP_STEP_S


def _gap_alone(fault: Callable[[TeacherProcess], None], watch_s: float) -> float:
    """The same with one batch on its way at a time, beyond the median time between two batches before the fault.

    The fault hits the teacher that has it: the one that answered most lately, while the student is in its step.
    """
    with _pair(images(1000, size=32, prefetch_factor=1), window=1) as (pair, reader):
        left = iter(reader)
        steps(left, 30, GAP_STEP_S)
        usual_s = statistics.median(b - a for a, b in pairwise(steps(left, 30, GAP_STEP_S)))
        counts = dict(reader.stats.by_teacher or {})
        steps(left, 4, GAP_STEP_S)
        now = reader.stats.by_teacher or {}
        victim = max(pair, key=lambda t: now.get(_name(t), 0) - counts.get(_name(t), 0))
        next(left)
        before_s = time.monotonic()
        time.sleep(GAP_STEP_S / 3)
        fault(victim)
        time.sleep(GAP_STEP_S * 2 / 3)
        return _longest([before_s, *steps(left, round(watch_s / GAP_STEP_S), GAP_STEP_S)]) - usual_s


def _name(teacher: TeacherProcess) -> str:
    return teacher.url.removeprefix("http://")
