"""Which pipes are taken for those of gloo's event loops, and what a byte in one does."""

import contextlib
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edl_collective import gloo_loops
from edl_collective.gloo_loops import GlooLoops


class LoopLikeGloo:
    """An epoll set that watches a pipe, with gloo's flags; `close` as its destructor does."""

    def __init__(self, *, cloexec: bool = False, blocking: bool = False, watched: bool = True) -> None:
        self.epoll = select.epoll()
        self.reading, self.writing = os.pipe2((os.O_CLOEXEC if cloexec else 0) | (0 if blocking else os.O_NONBLOCK))
        os.set_inheritable(self.epoll.fileno(), not cloexec)
        if watched:
            self.epoll.register(self.reading, select.EPOLLIN)

    def woken(self) -> bool:
        return bool(self.epoll.poll(0))

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)
        self.epoll.close()


#: nothing is known to be another's
NOBODYS: frozenset[int] = frozenset()


@pytest.fixture
def loops() -> Iterator[GlooLoops]:
    loops = GlooLoops()
    loops.look(NOBODYS)  # another test of this process may have left Horovod's own behind
    before = set(os.listdir("/proc/self/fd"))
    yield loops
    loops.look()  # the test has closed its loops
    assert set(os.listdir("/proc/self/fd")) == before, "a duplicate is left open"
    for duplicate in loops._pipes.values():
        os.close(duplicate)


def test_a_loop_is_found_woken_and_forgotten(loops: GlooLoops) -> None:
    gloo = LoopLikeGloo()
    loops.look(NOBODYS)
    assert not gloo.woken()
    loops.turn()
    assert gloo.woken()
    assert os.read(gloo.reading, 8) == b"\0"
    gloo.close()


@pytest.mark.parametrize("unlike", [{"cloexec": True}, {"blocking": True}, {"watched": False}])
def test_pipes_of_others_are_left_alone(loops: GlooLoops, unlike: dict[str, bool]) -> None:
    other = LoopLikeGloo(**unlike)
    loops.look(NOBODYS)
    loops.turn()
    assert not select.select([other.reading], [], [], 0)[0]
    other.close()


def test_a_loop_that_ended_gets_nothing_though_its_number_is_used_again(loops: GlooLoops) -> None:
    gloo = LoopLikeGloo()
    loops.look(NOBODYS)
    number = gloo.writing
    gloo.close()
    reading, writing = os.pipe2(os.O_NONBLOCK)
    os.dup2(writing, number)
    loops.turn()
    assert not select.select([reading], [], [], 0)[0]
    for fd in (reading, writing, number):
        os.close(fd)


def test_the_end_of_a_loop_ends_nobody_whose_sigpipe_is_the_default(loops: GlooLoops) -> None:
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with loops.turning(making=True):
            gloo = LoopLikeGloo()
            assert gloo.epoll.poll(60), "the loop was found and woken while the body ran"
            gloo.close()
            time.sleep(0.02)  # some turns into the broken pipe; a process that died has no later
        assert "edl-gloo-loops" not in {thread.name for thread in threading.enumerate()}
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_a_full_pipe_is_no_error(loops: GlooLoops) -> None:
    gloo = LoopLikeGloo()
    loops.look(NOBODYS)
    with contextlib.suppress(BlockingIOError):
        while os.write(gloo.writing, b"x" * 4096):
            pass
    assert not select.select([], [gloo.writing], [], 0)[1], "there is room left"
    loops.turn()
    assert gloo.woken()
    gloo.close()


def test_only_loops_that_were_made_with_a_world_are_turned(loops: GlooLoops) -> None:
    before = LoopLikeGloo()
    with loops.turning(making=True):
        gloo = LoopLikeGloo()
    after = LoopLikeGloo()
    with loops.turning(making=False):
        assert gloo.epoll.poll(60)
        time.sleep(0.02)  # some turns
    with loops.turning(making=True):
        time.sleep(0.02)
    assert (before.woken(), after.woken()) == (False, False)
    for loop in (before, gloo, after):
        loop.close()


def test_none_is_turned_where_that_is_turned_off() -> None:
    with GlooLoops(enabled=False).turning(making=True):
        gloo = LoopLikeGloo()
        assert "edl-gloo-loops" not in {thread.name for thread in threading.enumerate()}
    assert not gloo.woken()
    gloo.close()


def test_without_proc_the_body_runs_and_nothing_is_written(loops: GlooLoops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gloo_loops, "_FD_DIR", "/nowhere")
    with loops.turning(making=True):
        gloo = LoopLikeGloo()
        while "edl-gloo-loops" in {thread.name for thread in threading.enumerate()}:
            time.sleep(0.001)  # an error in the thread would fail the test
    assert not gloo.woken()
    gloo.close()


def test_an_fdinfo_that_tells_of_no_flags_is_of_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loops, gloo = GlooLoops(), LoopLikeGloo()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, str(gloo.epoll.fileno())).write_text("\npos: 0\n")
        monkeypatch.setattr(gloo_loops, "_FDINFO_DIR", folder)
        loops.look(NOBODYS)
        loops.turn()
    monkeypatch.undo()
    assert not gloo.woken()
    gloo.close()
