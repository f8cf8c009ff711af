"""Which pipes are taken for those of gloo's event loops, and what a byte in one does."""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator

import pytest

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


@pytest.fixture
def loops() -> Iterator[GlooLoops]:
    loops = GlooLoops()
    loops.look()  # another test of this process may have left Horovod's own behind
    before = set(os.listdir("/proc/self/fd"))
    yield loops
    loops.look()  # the test has closed its loops
    assert set(os.listdir("/proc/self/fd")) == before, "a duplicate is left open"
    for duplicate in loops._pipes.values():
        os.close(duplicate)


def test_a_loop_is_found_woken_and_forgotten(loops: GlooLoops) -> None:
    gloo = LoopLikeGloo()
    loops.look()
    assert not gloo.woken()
    loops.turn()
    assert gloo.woken()
    assert os.read(gloo.reading, 8) == b"\0"
    gloo.close()


@pytest.mark.parametrize("unlike", [{"cloexec": True}, {"blocking": True}, {"watched": False}])
def test_pipes_of_others_are_left_alone(loops: GlooLoops, unlike: dict[str, bool]) -> None:
    other = LoopLikeGloo(**unlike)
    loops.look()
    loops.turn()
    assert not select.select([other.reading], [], [], 0)[0]
    other.close()


def test_a_loop_that_ended_gets_nothing_though_its_number_is_used_again(loops: GlooLoops) -> None:
    gloo = LoopLikeGloo()
    loops.look()
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
        gloo = LoopLikeGloo()
        with loops.turning():
            assert gloo.epoll.poll(5), "the loop was found and woken while the body ran"
            gloo.close()
            time.sleep(0.02)  # some turns into the broken pipe; a process that died has no later
        assert "edl-gloo-loops" not in {thread.name for thread in threading.enumerate()}
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_a_full_pipe_is_no_error(loops: GlooLoops) -> None:
    gloo = LoopLikeGloo()
    loops.look()
    with contextlib.suppress(BlockingIOError):
        while os.write(gloo.writing, b"x" * 4096):
            pass
    assert not select.select([], [gloo.writing], [], 0)[1], "there is room left"
    loops.turn()
    assert gloo.woken()
    gloo.close()
