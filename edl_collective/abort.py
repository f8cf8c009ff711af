"""Makes the collectives of a generation fail at once when one of its members has died.

gloo would wait for its time-out (30 s by default) wherever a survivor is not a direct neighbour of the dead. So the TCP
sockets that Horovod opened during init are shut for reading: every pending collective then fails as on a lost peer.

Invariant: a socket is shut only between the return of init() and the start of shutdown(), only for a generation at or
below one that was aborted, and only if its inode is still the recorded one. Outside of that window gloo would end the
process with SIGABRT; an abort that comes during init waits for its end.
"""

import contextlib
import logging
import os
import socket
import struct
import sys
import threading

logger = logging.getLogger(__name__)

_FD_DIR = "/proc/self/fd"
_TIMEVAL = struct.Struct("ll")


class AbortSwitch:
    """The sockets of the present generation, and the level of aborts. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._aborted_generation = 0
        self._generation = 0
        self._before: frozenset[int] = frozenset()
        #: inode -> descriptor, empty unless collectives may run
        self._live: dict[int, int] = {}

    def begin_init(self) -> None:
        """Call before Horovod's init(): what is open now is not Horovod's."""
        self._before = frozenset(_sockets())

    def arm(self, generation: int) -> None:
        """Call when init() has returned."""
        opened = {inode: fd for inode, fd in _sockets().items() if inode not in self._before and _has_timeout(fd)}
        with self._lock:
            self._generation, self._live = generation, opened
            self._cut_if_aborted()

    def disarm(self) -> None:
        """Call before Horovod's shutdown(), which closes the sockets."""
        with self._lock:
            self._live = {}

    def abort(self, generation: int) -> None:
        """A member of `generation` is dead. Harmless for a generation that is over or was aborted already."""
        with self._lock:
            self._aborted_generation = max(self._aborted_generation, generation)
            self._cut_if_aborted()

    def _cut_if_aborted(self) -> None:
        if not self._live or self._generation > self._aborted_generation:
            return
        cut = sum(_shut(inode, fd) for inode, fd in self._live.items())
        self._live = {}
        logger.info("generation %d lost a member: shut %d of its sockets", self._generation, cut)


def _sockets() -> dict[int, int]:
    """Inode and descriptor of each open socket of this process."""
    found = {}
    for name in os.listdir(_FD_DIR):
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(f"{_FD_DIR}/{name}")
            if target.startswith("socket:["):
                found[int(target[8:-1])] = int(name)
    return found


def _has_timeout(fd: int) -> bool:
    """Whether it looks like one of gloo's, which have one; what another thread of the script connects rarely does."""
    with contextlib.suppress(OSError), _duplicate(fd) as peer:
        if peer.family in (socket.AF_INET, socket.AF_INET6) and peer.type == socket.SOCK_STREAM:
            seconds, microseconds = _TIMEVAL.unpack(
                peer.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.size)
            )
            return bool(seconds or microseconds)
    return False


def _shut(inode: int, fd: int) -> bool:
    """Shut the socket for reading if `fd` still is the one of `inode`; a duplicate keeps it while we look."""
    with contextlib.suppress(OSError), _duplicate(fd) as peer:
        if os.fstat(peer.fileno()).st_ino == inode:
            peer.shutdown(socket.SHUT_RD)
            return True
    return False


def _duplicate(fd: int) -> socket.socket:
    """A second descriptor of the socket. Raises OSError when `fd` is closed, or another file's by now."""
    mine = os.dup(fd)
    try:
        return socket.socket(fileno=mine)
    except OSError:
        os.close(mine)
        raise


def inside_horovod() -> bool:
    """Whether the main thread is in a call of Horovod at this moment: in a collective, in init or in shutdown."""
    module = sys.modules.get("horovod")
    ident = threading.main_thread().ident
    if module is None or module.__file__ is None or ident is None:
        return False
    package = os.path.dirname(module.__file__) + os.sep
    frame = sys._current_frames().get(ident)
    while frame is not None:
        if frame.f_code.co_filename.startswith(package):
            return True
        frame = frame.f_back
    return False
