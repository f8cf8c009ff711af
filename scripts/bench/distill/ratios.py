"""A student's throughput: with a teacher service against plain training, and against distillation in one process.

student-vs-plain-python, student-vs-plain-compute: batches a second of a trainer loop that reads through teachers
which are fast enough, divided by those of the same loop over the stock DataLoader; the loop is bound by Python (many
tiny operations) or by computing (large matrix products). student-vs-inprocess: against a loop that runs the teacher
itself before each step, t_teacher = 1.5 x t_student; the service's teachers sleep for that time instead of computing,
since the cores are shared. The ceiling is 1 + t_teacher / t_student. The loops stay as they are while others run, and a
run is SLICES short slices of each in turn, so that what else the machine does hits all. cpu_ms_*: CPU of each kind of
process per batch.
"""

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import psutil
import torch
from teachers import TeacherProcess, started

from bench.distill.student_data import ROWS, images, process_cpu_s, reader_of
from bench.rows import Row, row

Step = Callable[[], None]
PLAIN_CASES = {"student-vs-plain-python": "python", "student-vs-plain-compute": "compute"}
#: of an image here; what is measured is the trainer, not the copying
SIZE = 64
WARM_UP = 15
#: steps of a slice: those that use up what was read ahead meanwhile, and those that count
SKIP, STEPS, SLICES = 12, 25, 4
#: teachers of the largest service in student-vs-inprocess
SWEEP = 4


def python_step() -> Step:
    """Many tiny operations, about 12 ms."""
    tensor = torch.zeros(4)

    def step() -> None:
        for _ in range(6000):
            tensor.add_(1.0)

    return step


def compute_step() -> Step:
    """Matrix products without Python, about 12 ms."""
    a = torch.rand(512, 512)

    def step() -> None:
        for _ in range(3):
            torch.mm(a, a)

    return step


def _timed(step: Step, target_s: float) -> Callable[[], None]:
    """`step` repeated until it takes about `target_s` here."""
    step()
    began_s = time.perf_counter()
    step()
    count = max(1, round(target_s / (time.perf_counter() - began_s)))

    def repeated() -> None:
        for _ in range(count):
            step()

    return repeated


class Measured(NamedTuple):
    """One run of a loop: batches a second, and CPU milliseconds per batch of each kind of process."""

    rate: float
    cpu_ms: dict[str, float]


class _Loop:
    """A trainer's loop over `batches` that stands still between its slices; `running`: the teachers that it asks."""

    def __init__(self, batches: Iterable[object], step: Step, running: Sequence[TeacherProcess] = ()) -> None:
        self._batches = iter(batches)
        self._step = step
        self._running = running
        self._took_s = 0.0
        self._cpu_s: dict[str, float] = defaultdict(float)
        self.steps(WARM_UP)

    def steps(self, count: int) -> None:
        for _ in range(count):
            next(self._batches)
            self._step()

    def slice(self) -> None:
        """Count STEPS steps."""
        self.steps(SKIP)
        pids = _processes(self._running)
        before, began_s = _cpu_s(pids), time.perf_counter()
        self.steps(STEPS)
        self._took_s += time.perf_counter() - began_s
        for kind, used_s in _cpu_s(pids).items():
            self._cpu_s[kind] += used_s - before[kind]

    def take(self) -> Measured:
        """What was counted since the last call."""
        steps = SLICES * STEPS
        found = Measured(steps / self._took_s, {kind: used_s / steps * 1e3 for kind, used_s in self._cpu_s.items()})
        self._took_s, self._cpu_s = 0.0, defaultdict(float)
        return found


def _processes(running: Sequence[TeacherProcess]) -> dict[str, list[int]]:
    """Process ids by kind: the trainer, what it started, and these teachers, if the loop asks any."""
    found: dict[str, list[int]] = {"trainer": [os.getpid()], "loader-workers": [], "io-process": []}
    for child in psutil.Process().children():
        words = child.cmdline()
        if "distill.io_process" in words:
            found["io-process"].append(child.pid)
        elif "distill.teacher_server" not in words:
            found["loader-workers"].append(child.pid)
    if not running:
        del found["io-process"]  # it is there and idle
        return found
    return {**found, "teachers": [teacher.pid for teacher in running]}


def _cpu_s(pids: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {kind: sum(process_cpu_s(pid) for pid in of_kind) for kind, of_kind in pids.items()}


def _teachers(count: int, delay_s: float) -> list[TeacherProcess]:
    """Teachers that take `delay_s` for each request: what waits must not share a batch, and so the time."""
    options = ("teacher_models:identity", "--max-batch", str(ROWS))
    image = f"image:uint8:3,{SIZE},{SIZE}"
    return [TeacherProcess(*options, delay_s=delay_s, input=image) for _ in range(count)]


def _loader(runs: int) -> Any:
    return images(WARM_UP + runs * SLICES * (SKIP + STEPS) + 20, size=SIZE)


def _in_turns(loops: Mapping[str, _Loop], runs: int) -> dict[str, list[Measured]]:
    """`runs` runs of each; every other round of slices goes backwards."""
    measured: dict[str, list[Measured]] = {name: [] for name in loops}
    for _ in range(runs):
        for number in range(SLICES):
            for name in list(loops)[:: 1 if number % 2 == 0 else -1]:
                loops[name].slice()
        for name, loop in loops.items():
            measured[name].append(loop.take())
    return measured


def vs_plain(case: str, runs: int = 5) -> list[Row]:
    """Rows: the ratio, both rates, and what each process used."""
    torch.set_num_threads(1)
    step = _timed({"python": python_step, "compute": compute_step}[PLAIN_CASES[case]](), 0.02)
    pair = _teachers(2, 0.01)
    with started(*pair), reader_of(_loader(runs), pair) as reader:
        measured = _in_turns({"edl": _Loop(reader, step, pair), "plain": _Loop(_loader(runs), step)}, runs)
    return [row(case, "edl", "ratio", "1", _ratios(measured, "edl", "plain")), *_rows(case, measured)]


def vs_inprocess(runs: int = 5) -> list[Row]:
    """Rows: how many times the in-process rate, as a part of the ceiling as well, swept over counts of teachers.

    `edl` has one teacher more than it needs; `edl-N-teachers` has N, up to SWEEP.
    """
    torch.set_num_threads(1)
    student = _timed(compute_step(), 0.02)
    teacher = _timed(compute_step(), 0.03)
    t_student, t_teacher = (_seconds(step) for step in (student, teacher))
    needed = math.ceil(t_teacher / t_student)
    case, ceiling = "student-vs-inprocess", 1 + t_teacher / t_student

    def both() -> None:
        teacher()
        student()

    most = max(SWEEP, needed + 1)
    with started(*_teachers(most, t_teacher)) as running, ExitStack() as stack:
        loops = {"inprocess": _Loop(_loader(runs), both)}
        for count in range(1, most + 1):
            some = running[:count]
            reader = stack.enter_context(reader_of(_loader(runs), some))
            name = "edl" if count == needed + 1 else f"edl-{count}-teachers"
            loops[name] = _Loop(reader, student, some)
        measured = _in_turns(loops, runs)
    rows = []
    for name in loops:
        if name != "inprocess":
            ratios = _ratios(measured, name, "inprocess")
            rows.append(row(case, name, "ratio", "1", ratios))
            rows.append(row(case, name, "ratio_of_ceiling", "1", [ratio / ceiling for ratio in ratios]))
    return [*rows, *_rows(case, measured)]


def _seconds(step: Step, times: int = 20) -> float:
    began_s = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - began_s) / times


def _ratios(measured: Mapping[str, Sequence[Measured]], ours: str, theirs: str) -> list[float]:
    return [a.rate / b.rate for a, b in zip(measured[ours], measured[theirs], strict=True)]


def _rows(case: str, measured: Mapping[str, Sequence[Measured]]) -> list[Row]:
    rows = []
    for system, runs in measured.items():
        rows.append(row(case, system, "batches_per_s", "1/s", [run.rate for run in runs]))
        for kind in runs[0].cpu_ms:
            rows.append(row(case, system, f"cpu_ms_{kind}", "ms", [run.cpu_ms[kind] for run in runs]))
    return rows
