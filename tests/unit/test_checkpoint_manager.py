"""The manager: what a save copies and when, and what the next call raises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from checkpoint_faults import Crash, FaultDriver, outage
from checkpoint_memory import Counter, MemoryDriver, at, manager, newest

from checkpoints import (
    CheckpointError,
    CheckpointManager,
    CheckpointUnavailable,
    Every,
    Progress,
    SaveResult,
    StateNotSupported,
    list_checkpoints,
    load_checkpoint,
)

# ---- the copy and the thread -----------------------------------------------------------------------------------------


def test_what_changes_after_save_returned_is_not_in_the_checkpoint() -> None:
    driver, counter = MemoryDriver(), Counter(1)
    driver.gate.clear()
    with manager(driver) as checkpoints:
        assert checkpoints.save(at(1), counter=counter)
        counter.weight.fill_(2)
        assert checkpoints.in_flight
        assert not checkpoints.wait(0.01)
        driver.gate.set()
        assert checkpoints.wait()
    assert newest(driver) == (1, 1)


def test_a_second_save_waits_for_the_first_and_copies_afterwards() -> None:
    driver, counter = MemoryDriver(), Counter(1)
    driver.gate.clear()
    with manager(driver) as checkpoints:
        checkpoints.save(at(1), counter=counter)
        threading.Timer(0.1, driver.gate.set).start()
        counter.weight.fill_(2)
        assert checkpoints.save(at(2), counter=counter)
        assert [info.global_step for info in list_checkpoints("folder", driver=driver)][-1] == 1
    assert newest(driver) == (2, 2)


def test_a_second_save_may_be_replaced_by_a_later_one() -> None:
    driver, counter = MemoryDriver(), Counter(1)
    driver.gate.clear()
    with manager(driver, when_busy="replace", every=Every(steps=10)) as checkpoints:
        assert checkpoints.save(at(10), counter=counter)
        assert driver.entered.wait(60)
        counter.weight.fill_(2)
        assert not checkpoints.save(at(20), counter=counter)
        driver.gate.set()
        checkpoints.wait()
        counter.weight.fill_(3)
        assert checkpoints.save(at(21), counter=counter), "step 21 takes the place of step 20"
        assert not checkpoints.save(at(22), counter=counter), "and is not saved twice"
    assert [info.global_step for info in list_checkpoints("folder", driver=driver)] == [21, 10]
    assert newest(driver) == (21, 3)


def test_a_replaced_save_that_nothing_replaced_is_told_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    driver = MemoryDriver()
    driver.gate.clear()
    with manager(driver, when_busy="replace") as checkpoints:
        checkpoints.save(at(1), counter=Counter(1))
        assert not checkpoints.save(at(2), counter=Counter(2))
        driver.gate.set()
    assert "none came after" in caplog.text
    assert newest(driver) == (1, 1)


def test_a_forced_save_waits_even_where_others_are_replaced() -> None:
    driver, counter = MemoryDriver(), Counter(1)
    driver.gate.clear()
    with manager(driver, when_busy="replace") as checkpoints:
        checkpoints.save(at(1), counter=counter)
        threading.Timer(0.1, driver.gate.set).start()
        assert checkpoints.save(at(2), force=True, counter=counter)
    assert newest(driver) == (2, 1)


def test_memory_is_the_state_and_is_taken_once() -> None:
    state = {"a": torch.ones(1 << 20), "b": torch.ones(3, dtype=torch.int8), "c": torch.ones(5, dtype=torch.float64)}
    size_bytes = (4 << 20) + 3 + 40
    with manager(MemoryDriver()) as checkpoints:
        assert checkpoints.memory_bytes == 0
        checkpoints.reserve(state=state)
        checkpoints.wait()
        taken = checkpoints.memory_bytes
        buffer = checkpoints._staging._buffer
        for step in range(3):
            checkpoints.save(at(step), state=state)
        assert size_bytes <= checkpoints.memory_bytes == taken <= 1.05 * size_bytes
        assert checkpoints._staging._buffer is buffer
        checkpoints.save(at(4), state={**state, "more": torch.ones(1 << 20)})
        assert checkpoints.memory_bytes <= 1.05 * (size_bytes + (4 << 20))


def test_memory_that_is_not_there_is_an_error_with_a_way_out() -> None:
    with (
        manager(MemoryDriver()) as checkpoints,
        pytest.raises(CheckpointError, match=r"no memory for.*async_save=False"),
    ):
        checkpoints.save(at(1), state={"w": torch.zeros(1).expand(1 << 50)})


def test_a_state_that_changes_its_shape_is_saved_as_it_is() -> None:
    driver = MemoryDriver()
    shapes: list[tuple[int, ...]] = [(10,), (3, 4), (0,), (2, 2), ()]
    with manager(driver, keep=None) as checkpoints:
        for step, shape in enumerate(shapes):
            checkpoints.save(at(step), state={"w": torch.full(shape, step), "n": step})
    for step, shape in enumerate(shapes):
        loaded = load_checkpoint("folder", driver=driver, checkpoint_no=step + 1)
        assert loaded is not None
        assert loaded.state["state"]["n"] == step
        assert torch.equal(loaded.state["state"]["w"], torch.full(shape, step))


def test_a_synchronous_save_is_durable_when_it_returns() -> None:
    driver, results = MemoryDriver(), list[SaveResult]()
    checkpoints = manager(driver, async_save=False, on_result=results.append)
    checkpoints.save(at(1), counter=Counter(1))
    assert newest(driver) == (1, 1)
    assert not checkpoints.in_flight
    assert results[0].info is not None
    assert results[0].blocked_s == results[0].seconds
    with pytest.raises(CheckpointUnavailable, match="step 2 was not saved in folder"):
        manager(FaultDriver(driver, 0, error=outage), async_save=False).save(at(2), counter=Counter(2))


def test_progress_is_told_and_what_a_callback_raises_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    driver, seen = MemoryDriver(), list[Progress]()
    with manager(driver, on_progress=seen.append) as checkpoints:
        checkpoints.save(at(1), counter=Counter(1))
    assert seen[-1].total_bytes == 400
    assert seen[-1].written_bytes > 400
    assert "MB/s" in str(seen[-1])

    def fails(_: object) -> None:
        raise RuntimeError("mistake in a callback")

    with manager(driver, on_progress=fails, on_result=fails) as checkpoints:
        checkpoints.save(at(2), counter=Counter(2))
    assert newest(driver) == (2, 2)
    assert "mistake in a callback" in caplog.text


def test_slow_saves_tell_how_far_they_are() -> None:
    from checkpoints.progress import ProgressLog

    times, seen = iter([0.0, 0.5, 1.25, 2.0, 4.0]), list[Progress]()
    log = ProgressLog(100, lambda: next(times), seen.append)
    for _ in range(3):
        log.wrote(25_000_000)
    log.done("name")
    assert [(p.written_bytes, p.seconds) for p in seen] == [(50_000_000, 1.25), (75_000_000, 4.0)]
    assert seen[0].mb_s == 40


# ---- failure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["save", "wait", "close", "load"])
def test_a_failed_save_is_raised_by_the_next_call_once(call: str, caplog: pytest.LogCaptureFixture) -> None:
    results: list[SaveResult] = []
    driver = FaultDriver(MemoryDriver(), 4, error=outage, lasting=False)
    checkpoints = manager(driver, retry_s=0, every=Every(steps=10), on_result=results.append)
    assert checkpoints.save(at(10), counter=Counter(1))
    checkpoints._thread.join()  # type: ignore[union-attr]
    with pytest.raises(CheckpointUnavailable, match=r"step 10 was not saved in folder.*is away"):
        checkpoints.save(at(11), counter=Counter(1)) if call == "save" else getattr(checkpoints, call)()
    assert "step 10 was not saved" in caplog.text
    assert isinstance(results[0].error, CheckpointUnavailable)
    assert checkpoints.save(at(12), counter=Counter(2)), "it is due again"
    checkpoints.close()
    assert newest(driver) == (12, 2)


def test_the_block_s_own_error_is_not_hidden_by_a_failed_save() -> None:
    def body() -> None:
        with manager(FaultDriver(MemoryDriver(), 4, error=outage), retry_s=0) as checkpoints:
            checkpoints.save(at(1), counter=Counter(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()


def test_a_mistake_of_ours_in_the_thread_is_raised_too() -> None:
    checkpoints = manager(FaultDriver(MemoryDriver(), 3, error=lambda: RuntimeError("a bug")))
    checkpoints.save(at(1), counter=Counter(1))
    with pytest.raises(CheckpointError, match="a bug"):
        checkpoints.wait()


def test_what_cannot_be_stored_is_refused_at_once_and_leaves_nothing() -> None:
    driver = MemoryDriver()
    with manager(driver) as checkpoints, pytest.raises(StateNotSupported):
        checkpoints.save(at(1), counter=Counter(1), bad=object())
    assert driver.files == {}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_step_of_an_asynchronous_save_loses_only_that_save(tmp_path: Path, after: bool) -> None:
    for fail_at in range(200):
        memory = MemoryDriver()
        with manager(memory, keep=2) as good:
            for step in (1, 2):
                good.save(at(step), counter=Counter(step))
        driver = FaultDriver(memory, fail_at, after)
        dying = manager(driver, keep=2, retry_s=0)
        dying.save(at(3), counter=Counter(3))
        dying._thread.join()  # type: ignore[union-attr]
        finished = dying._failure is None
        assert finished or isinstance(dying._failure.__cause__, Crash)  # type: ignore[union-attr]
        written = any(name.startswith("write_once ckpt") for name in driver.operations[: fail_at + after])
        assert newest(memory) == ((3, 3) if written else (2, 2)), driver.operations[-1]
        with manager(memory, keep=2) as following:
            following.load()
            following.save(at(4), counter=Counter(4))
        assert newest(memory) == (4, 4)
        assert {info.condition.value for info in list_checkpoints("", driver=memory)} == {"valid"}
        if finished:
            break
    assert finished
    assert fail_at > 15


# ---- when ------------------------------------------------------------------------------------------------------------


def test_calls_that_are_not_due_cost_nothing_and_save_nothing() -> None:
    driver = MemoryDriver()
    now_s = [0.0]
    with manager(driver, every=Every(epochs=2, seconds=100), keep=None, clock=lambda: now_s[0]) as checkpoints:
        saved = []
        for epoch in range(5):
            for step in range(3):
                now_s[0] += 15
                if checkpoints.save(at(3 * epoch + step, epoch - 1), counter=Counter(0)):
                    saved.append((epoch - 1, step))
    # Two epochs take 90 s, so the timer never comes to its end.
    assert saved == [(1, 0), (3, 0)]


def test_a_save_that_was_asked_for_is_done_at_the_next_call() -> None:
    driver = MemoryDriver()
    with manager(driver, every=Every(epochs=1)) as checkpoints:
        assert not checkpoints.save(at(1), counter=Counter(1))
        checkpoints.save_soon("the node is going away")
        reasons = [checkpoints.save_asked]
        assert checkpoints.save(at(2), counter=Counter(2))
        reasons.append(checkpoints.save_asked)
        assert reasons == ["the node is going away", None]
        assert not checkpoints.save(at(3), counter=Counter(3))
    assert newest(driver) == (2, 2)


def test_a_signal_asks_for_a_save_and_its_former_handler_is_called() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    try:
        checkpoints = manager(MemoryDriver())
        checkpoints.save_on(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert checkpoints.save_asked == "SIGUSR1 was received"
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_after_a_restart_the_same_steps_are_due() -> None:
    driver = MemoryDriver()
    with manager(driver) as first:
        first.save(at(103), counter=Counter(1))
    with manager(driver, every=Every(steps=50)) as second:
        second.load(counter=Counter())
        assert not second.save(at(149), counter=Counter(1))
        assert second.save(at(150), counter=Counter(1))


# ---- processes -------------------------------------------------------------------------------------------------------


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        check=False,
    )


def test_the_end_of_a_process_waits_for_its_save(tmp_path: Path) -> None:
    done = python(
        "import concurrent.futures, sys, time, torch, checkpoints\n"
        "from checkpoints.drivers.local import LocalDriver\n"
        "class Slow(LocalDriver):\n"
        "    def open_write(self, path):\n"
        "        time.sleep(1)\n"
        "        concurrent.futures.ThreadPoolExecutor(1).submit(int).result()\n"  # as asyncio does for an address
        "        return super().open_write(path)\n"
        "manager = checkpoints.CheckpointManager(sys.argv[1], driver=Slow(sys.argv[1]))\n"
        "manager.save(checkpoints.TrainStatus(global_step=7), state={'w': torch.ones(9)})\n"
        "assert manager.in_flight\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    latest = CheckpointManager(tmp_path).latest()
    assert latest is not None, done.stderr
    assert latest.global_step == 7


def test_a_forked_child_is_told_to_make_its_own() -> None:
    checkpoints = manager(MemoryDriver())
    checkpoints.save(at(1), counter=Counter(1))
    checkpoints.wait()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            checkpoints.save(at(2), counter=Counter(2))
        except CheckpointError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    assert "inherited by a fork" in said


def test_saving_from_the_live_state_takes_little_memory(tmp_path: Path) -> None:
    done = python(
        "import sys, torch, checkpoints\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) << 10\n"
        "state = {str(i): torch.ones(1 << 22) for i in range(12)}\n"
        "manager = checkpoints.CheckpointManager(sys.argv[1], async_save=False)\n"
        "manager.save(checkpoints.TrainStatus(), state={'w': torch.ones(9)})\n"
        "before = peak()\n"
        "manager.save(checkpoints.TrainStatus(global_step=1), state=state)\n"
        "print((peak() - before) >> 20)\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 64
