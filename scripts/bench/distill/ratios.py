"""A student's throughput: with a teacher service against plain training, and against distillation in one process.

    PYTHONPATH=.:scripts:tests python -m bench.distill.ratios [case ...]

student-vs-plain-python, student-vs-plain-compute: batches a second of a trainer loop that reads through teachers
which are fast enough, divided by those of the same loop over the stock DataLoader; the loop is bound by Python (many
tiny operations) or by computing (large matrix products). student-vs-inprocess: against a loop that runs the teacher
itself before each step, t_teacher = 1.5 x t_student; the service's teachers sleep for that time instead of computing,
since the cores are shared. The ceiling is 1 + t_teacher / t_student. Runs alternate, so that what else the machine
does hits both.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from teachers import TeacherProcess, started

from bench.distill.student_data import images, reader_of, row
from bench.rows import Row

Step = Callable[[], None]
PLAIN_CASES = {"student-vs-plain-python": "python", "student-vs-plain-compute": "compute"}
#: of an image here; what is measured is the trainer, not the copying
SIZE = 64
WARM_UP, STEPS = 15, 100


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


def _rate(batches: Iterable[object], step: Step) -> float:
    """Batches a second of a loop over `batches`, after a warm-up."""
    began_s = 0.0
    for number, _ in enumerate(batches):
        if number == WARM_UP:
            began_s = time.perf_counter()
        if number == WARM_UP + STEPS:
            return STEPS / (time.perf_counter() - began_s)
        step()
    raise AssertionError("the loader is too short")


def _teachers(count: int, delay_s: float) -> list[TeacherProcess]:
    image = f"image:uint8:3,{SIZE},{SIZE}"
    return [TeacherProcess("teacher_models:identity", delay_s=delay_s, input=image) for _ in range(count)]


def vs_plain(case: str, runs: int = 3) -> list[Row]:
    """Rows: the ratio, and both rates."""
    torch.set_num_threads(1)
    step = _timed({"python": python_step, "compute": compute_step}[PLAIN_CASES[case]](), 0.02)
    service, plain = [], []
    pair = _teachers(2, 0.01)
    with started(*pair), reader_of(images(WARM_UP + STEPS + 20, size=SIZE), pair) as reader:
        for _ in range(runs):
            plain.append(_rate(images(WARM_UP + STEPS + 20, size=SIZE), step))
            service.append(_rate(reader, step))
    ratios = [a / b for a, b in zip(service, plain, strict=True)]
    return _rows(case, ratios, {"edl": service, "plain": plain})


def vs_inprocess(runs: int = 3) -> list[Row]:
    """Rows: how many times the in-process rate, as a part of the ceiling as well."""
    torch.set_num_threads(1)
    student = _timed(compute_step(), 0.02)
    teacher = _timed(compute_step(), 0.03)
    t_student, t_teacher = (_seconds(step) for step in (student, teacher))
    service, inside = [], []
    needed = 1 + round(t_teacher / t_student + 0.5)
    running = _teachers(needed, t_teacher)

    def both() -> None:
        teacher()
        student()

    with started(*running), reader_of(images(WARM_UP + STEPS + 20, size=SIZE), running) as reader:
        for _ in range(runs):
            inside.append(_rate(images(WARM_UP + STEPS + 20, size=SIZE), both))
            service.append(_rate(reader, student))
    ratios = [a / b for a, b in zip(service, inside, strict=True)]
    ceiling = 1 + t_teacher / t_student
    case = "student-vs-inprocess"
    rows = _rows(case, ratios, {"edl": service, "inprocess": inside})
    return [*rows, row(case, "edl", "ratio_of_ceiling", "1", [ratio / ceiling for ratio in ratios])]


def _seconds(step: Step, times: int = 20) -> float:
    began_s = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - began_s) / times


def _rows(case: str, ratios: Sequence[float], rates: dict[str, list[float]]) -> list[Row]:
    found = [row(case, system, "batches_per_s", "1/s", values) for system, values in rates.items()]
    return [row(case, "edl", "ratio", "1", ratios), *found]


CASES: dict[str, Callable[[], list[Row]]] = {
    "student-vs-plain-python": lambda: vs_plain("student-vs-plain-python"),
    "student-vs-plain-compute": lambda: vs_plain("student-vs-plain-compute"),
    "student-vs-inprocess": vs_inprocess,
}


def main(names: list[str]) -> int:
    for name in names or CASES:
        for found in CASES[name]():
            print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
