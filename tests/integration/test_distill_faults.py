"""Teachers and IO processes that die, freeze, lie, leave and return: no batch is lost, doubled or out of order."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distill_students import FaultTeacher, Numbered, check, named, reader_options, teachers
from torch.utils.data import DataLoader

from distill.errors import NoTeacher, TeacherRefused
from distill.reader import DistillReader

pytestmark = pytest.mark.integration

SAMPLES = 960


def reader_of(running: list[FaultTeacher], samples: int = SAMPLES, **options: Any) -> DistillReader:
    loader = DataLoader(Numbered(samples), batch_size=8, num_workers=2)
    return DistillReader(loader, **reader_options(teachers=named(running), **options))


def read(batches: Iterator[Any], count: int) -> list[int]:
    return [number for _ in range(count) for number in check(*next(batches)[:3])]


def answered(reader: DistillReader, teacher: FaultTeacher) -> int:
    by_teacher = reader.stats.by_teacher
    assert by_teacher is not None
    return by_teacher.get(teacher.name, 0)


def test_kill_freeze_and_return_of_a_teacher() -> None:
    samples = 5 * SAMPLES  # for as many steps as it may take until the teacher that returns is asked again
    with teachers(("--delay-ms", "5"), ("--delay-ms", "5")) as running, reader_of(running, samples) as reader:
        batches = iter(reader)
        numbers = read(batches, 20)
        running[0].kill()
        numbers += read(batches, 20)
        running[0] = running[0].again()
        running[0].await_live()
        before = answered(reader, running[0])
        deadline_s = time.monotonic() + 60
        while answered(reader, running[0]) == before:
            assert time.monotonic() < deadline_s
            numbers += read(batches, 1)
            time.sleep(0.02)  # a step of training
        running[1].process.send_signal(signal.SIGSTOP)
        began_s = time.monotonic()
        numbers += read(batches, 20)
        assert time.monotonic() - began_s < 30, "hedged, or at the latest after the deadline"
        running[1].process.send_signal(signal.SIGCONT)
        numbers += [n for batch in batches for n in check(*batch)]
        assert numbers == list(range(samples))


def test_large_batches_survive_all_of_that_and_kept_ones_stay_as_they_were() -> None:
    """Large enough to be sent from the ring itself, so that what is still under way could show a later batch."""
    samples = 1280
    loader = DataLoader(Numbered(samples, width=1 << 16), batch_size=8, num_workers=2)
    slow = ("--delay-ms", "4")
    kept = []
    with (
        teachers(slow, slow, slow) as running,
        DistillReader(loader, **reader_options(teachers=named(running), window=4)) as reader,
    ):
        batches = iter(reader)
        numbers = read(batches, 10)
        assert reader._session is not None
        link = reader._session.link
        assert link is not None
        faults: dict[int, Callable[[], object]] = {
            20: running[0].kill,
            40: lambda: running[1].process.send_signal(signal.SIGSTOP),
            70: lambda: running[1].process.send_signal(signal.SIGCONT),
            90: lambda: os.kill(link.pid, signal.SIGKILL),
        }
        for count, batch in enumerate(batches, 10):
            numbers += check(*batch)
            if count % 8 == 0:
                kept.append(batch)
            if count in faults:
                faults[count]()
        assert numbers == list(range(samples))
        assert reader.stats.outside_of_ring == 0
    for batch in kept:
        check(*batch)


def test_all_teachers_die_and_return() -> None:
    with teachers((), ()) as running, reader_of(running) as reader:
        batches = iter(reader)
        numbers = read(batches, 10)
        for teacher in running:
            teacher.kill()
        returned = threading.Timer(0.8, lambda: running.__setitem__(0, running[0].again()))
        returned.start()
        numbers += [n for batch in batches for n in check(*batch)]
        returned.join()
        assert numbers == list(range(SAMPLES))
        assert reader.stats.waited_s > 0.5, "starvation is a number"


def test_the_io_process_dies_again_and_again() -> None:
    with teachers(("--delay-ms", "2"), ("--delay-ms", "2")) as running, reader_of(running) as reader:
        batches = iter(reader)
        numbers = read(batches, 5)
        assert reader._session is not None
        assert reader._session.link is not None
        for _ in range(3):
            os.kill(reader._session.link.pid, signal.SIGKILL)
            numbers += read(batches, 30)
        assert reader._session.link.respawns == 3
        numbers += [n for batch in batches for n in check(*batch)]
        assert numbers == list(range(SAMPLES))


@pytest.mark.parametrize("fault", ["nan", "shape", "hash", "refuse", "busy", "close", "garbage"])
def test_a_teacher_that_lies_or_refuses_is_not_learned_from(fault: str) -> None:
    options = ("--fault", fault, "--after", "8")
    with teachers(options, ("--delay-ms", "1")) as running, reader_of(running, 320) as reader:
        assert [n for batch in reader for n in check(*batch)] == list(range(320))
        assert answered(reader, running[0]) <= 8
        assert answered(reader, running[1]) >= 32


def test_what_all_refuse_reaches_the_student() -> None:
    options = ("--fault", "refuse", "--after", "8")
    with (
        teachers(options, options) as running,
        reader_of(running) as reader,
        pytest.raises(TeacherRefused, match="answers 400: it does not want to"),
    ):
        list(reader)


def test_without_teachers_the_hard_labels_go_on() -> None:
    options: dict[str, Any] = {"on_no_teacher": "hard_labels", "hard_labels_after_s": 1.0}
    with teachers(()) as running, reader_of(running, **options) as reader:
        batches = iter(reader)
        numbers = []
        for _ in range(10):
            *batch, mask = next(batches)
            assert mask.all()
            numbers += check(*batch)
        running[0].kill()
        masked = 0
        for _ in range(40):
            _, labels, zeros, mask = next(batches)
            numbers += labels.tolist()
            masked += int(not mask.any())
            if not mask.any():
                assert not zeros.any()
        assert masked > 10
        assert reader.stats.unanswered == masked
        running[0] = running[0].again()
        valid = []
        for pixels, labels, predictions, mask in batches:
            numbers += labels.tolist()
            valid.append(bool(mask.all()))
            if mask.all():
                check(pixels, labels, predictions)
            time.sleep(0.02)
        assert valid[-1]
        assert numbers == list(range(SAMPLES))


def test_without_teachers_the_wait_has_a_reason_and_an_end(caplog: pytest.LogCaptureFixture) -> None:
    with teachers(()) as running, reader_of(running, no_teacher_timeout_s=4.0) as reader:
        batches = iter(reader)
        read(batches, 3)
        running[0].kill()
        with pytest.raises(NoTeacher, match=r"cannot be reached.*no_teacher_timeout_s"):
            read(batches, 100)
        assert "waiting for teachers" in caplog.text
