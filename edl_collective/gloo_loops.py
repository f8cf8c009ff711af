"""Keeps gloo's event loops turning while Horovod sets a world up or tears it down.

Whenever gloo takes a socket out of its event loop, it waits for the loop to come round, and an idle loop does so every
10 ms (transport/tcp/loop.cc: unregisterDescriptor, run). Connecting and closing a world of N members is some 2 N such
waits, one after the other, and they were most of a resize. Each loop watches a pipe by which gloo itself wakes it: a
byte written there makes it come round at once, and does nothing else.

Invariant: a byte goes only into a pipe that appeared while a world was set up here, that an epoll set of this process
watches and that is not closed on exec; gloo's are not, Python's are. It goes through a duplicate, so never into what
took the number of a closed one. Where /proc does not tell of pipes, nothing is written.

It cannot tell gloo's from what another thread of the script makes alike at that moment: EDL_GLOO_LOOPS=0 turns it off.
"""

import contextlib
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Set

logger = logging.getLogger(__name__)

#: between two turns of a loop; shorter costs processors that the members of the world share
TURN_S = 0.001
#: part of the time that may go into looking for loops, for processes with thousands of open files
_LOOKING = 0.25

_FD_DIR = "/proc/self/fd"
_FDINFO_DIR = "/proc/self/fdinfo"


class GlooLoops:
    """The event loops of gloo in this process, as far as they were seen; none if not `enabled`."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        #: inode of a loop's pipe -> our duplicate of the end that is written to
        self._pipes: dict[int, int] = {}

    @contextlib.contextmanager
    def turning(self, *, making: bool) -> Iterator[None]:
        """While the body runs, which must release the GIL, let all loops turn; if `making`, those too that it makes."""
        if not self._enabled:
            yield
            return
        others = _pipes() if making else None
        over = threading.Event()
        thread = threading.Thread(target=self._turn, args=(over, others), name="edl-gloo-loops", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def look(self, others: Set[int] | None = None) -> None:
        """Forget the loops that ended, and find those of which the pipe is none of `others`; None: find none.

        Raises OSError when /proc does not tell.
        """
        watched, pipes = _epolls_and_pipes()
        for inode in self._pipes.keys() - watched:
            os.close(self._pipes.pop(inode))
        found = set() if others is None else (watched & pipes.keys()) - others
        for inode in found - self._pipes.keys():
            duplicate = next(filter(None, (_writing_end(inode, fd) for fd in pipes[inode])), None)
            if duplicate is not None:
                self._pipes[inode] = duplicate

    def turn(self) -> None:
        """Make each loop come round once."""
        for inode, duplicate in list(self._pipes.items()):
            try:
                os.write(duplicate, b"\0")
            except BlockingIOError:
                continue  # full of bytes: the loop has enough to wake up for
            except OSError:  # its loop is gone
                os.close(self._pipes.pop(inode))

    def _turn(self, over: threading.Event, others: Set[int] | None) -> None:
        # A script may have set SIGPIPE back to its default, which would end the process when a loop ends.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        while True:
            began = time.monotonic()
            last = over.is_set()  # once more, for the loop that was made last
            try:
                self.look(others)
            except OSError as error:
                logger.debug("gloo's event loops cannot be found, so worlds form slower: %s", error)
                return
            took = time.monotonic() - began
            self.turn()
            if last:
                return
            over.wait(max(TURN_S, took / _LOOKING))


def _pipes() -> frozenset[int] | None:
    """Inodes of the pipes that are open now, None if /proc does not tell."""
    try:
        return frozenset(_epolls_and_pipes()[1])
    except OSError:
        return None


def _epolls_and_pipes() -> tuple[set[int], dict[int, list[int]]]:
    """Inodes that epoll sets of gloo's kind watch; inode and descriptors of each open pipe."""
    watched: set[int] = set()
    pipes: dict[int, list[int]] = {}
    for name in os.listdir(_FD_DIR):
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(f"{_FD_DIR}/{name}")
            if target.startswith("pipe:["):
                pipes.setdefault(int(target[6:-1]), []).append(int(name))
            elif target == "anon_inode:[eventpoll]":
                watched |= _watched(name)
    return watched, pipes


def _watched(epoll: str) -> set[int]:
    """Inodes of what an epoll set watches; none if it is closed on exec, which gloo's is not."""
    with open(f"{_FDINFO_DIR}/{epoll}") as lines:
        fields = [line.split() for line in lines]
    flags = [int(words[1], 8) for words in fields if words[:1] == ["flags:"]]
    if not flags or flags[0] & os.O_CLOEXEC:
        return set()
    # tfd: 4 events: 19 data: 4 pos:0 ino:28833a sdev:f
    inodes = (word for words in fields if words[:1] == ["tfd:"] for word in words if word.startswith("ino:"))
    return {int(word[4:], 16) for word in inodes}


def _writing_end(inode: int, fd: int) -> int | None:
    """A duplicate of `fd` if it is the writing end of the pipe `inode`, does not block and survives exec."""
    with contextlib.suppress(OSError):
        if fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
            return None
        duplicate = os.dup(fd)
        flags = fcntl.fcntl(duplicate, fcntl.F_GETFL)
        if os.fstat(duplicate).st_ino == inode and flags & os.O_ACCMODE == os.O_WRONLY and flags & os.O_NONBLOCK:
            return duplicate
        os.close(duplicate)
    return None
