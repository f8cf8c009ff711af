"""Folders in memory in which the workers of this node hold the states of their jobs between two worlds.

Invariant: a folder is of one job that this JobClient knows, told from one of the same name that was submitted later; it
goes with the job, and all go with the JobClient. Those of a JobClient that was killed are removed by the next one of
this user. Removing many GB takes seconds: a thread does that, and holds no lock for which others wait. What is in them,
and when it may be used, is the workers' affair (edl_collective/held.py).
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobclient.decide import Submission
from jobclient.run_as import RunAs, own_folder

logger = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")  # noqa: S108 - what is made there is checked to be ours
#: how long another JobClient of this user may hold the lock under which folders appear and vanish
LOCK_WAIT_S = 2.0
_LOCK_RETRY_S = 0.02


class HeldFolders:
    """Begins with no folder; `close` removes what there is. Where the machine has no /dev/shm there never is one.

    One call at a time, from any thread.
    """

    def __init__(self, node: str, memory: Path = MEMORY, user: RunAs | None = None) -> None:
        """`user`: whose the folders of jobs are; None: of the user of this process."""
        self._node = node
        self._user = user
        self._memory = memory
        self._base: Path | None = None
        self._lock: int | None = None
        self._folders: dict[Submission, Path] = {}
        self._remover = ThreadPoolExecutor(max_workers=1, thread_name_prefix="held-folders")

    def folder(self, job: str, submitted_at: float) -> Path | None:
        """The folder of a job, made when it is first asked for; None where there can be none.

        May block for LOCK_WAIT_S.
        """
        try:
            if self._base is None:
                name = f"{os.getpid()}-{self._node[:32]}"
                self._base, self._lock = _open_base(self._memory, name, self._user is not None, self._remove_later)
            folder = self._folders.setdefault((job, submitted_at), self._base / f"{job}-{submitted_at:.6f}")
            folder.mkdir(mode=0o700, exist_ok=True)
            if self._user is not None:
                os.chown(folder, self._user.uid, self._user.gid, follow_symlinks=False)
            return folder
        except OSError as error:
            logger.warning("job %s: its state is not held in memory: %s", job, error)
            return None

    def _remove_later(self, folder: Path, lock: int) -> None:
        self._remover.submit(_remove, folder, lock)

    def keep(self, jobs: Collection[Submission]) -> None:
        """Have the folders of all others removed, without waiting for that."""
        for key in self._folders.keys() - set(jobs):
            self._remover.submit(_clear, self._folders.pop(key))

    def close(self) -> None:
        """Remove everything; call when no worker is left. May block for as long as that takes."""
        self._remover.shutdown()
        if self._base is not None and self._lock is not None:
            _remove(self._base, self._lock)
            self._base = self._lock = None


def _open_base(memory: Path, name: str, others: bool, remove: Callable[[Path, int], None]) -> tuple[Path, int]:
    """A folder of this process that only this user can read and change, and its lock, which tells others that we live.

    `others`: another user may go through it, to a folder of its own.
    Calls `remove(folder, lock)` for each that a dead one left. Raises OSError.
    """
    ours = memory / f"edl-{os.getuid()}"
    own_folder(ours, others)
    base = ours / name
    everybody = _locked_soon(ours)  # nobody sweeps a folder that is made but not locked yet
    try:
        for path in list(ours.iterdir()):
            _take_from_the_dead(path, remove)
        base.mkdir(mode=0o700)
        own_folder(base, others)
        return base, _locked(base)
    finally:
        os.close(everybody)


def _take_from_the_dead(path: Path, remove: Callable[[Path, int], None]) -> None:
    """Have the folder of a dead JobClient removed, under a name that nobody asks for; leave all else alone."""
    try:
        lock = _locked(path)
    except BlockingIOError:
        return  # its JobClient lives
    except OSError as error:  # no folder, most likely
        logger.info("%s is left alone: %s", path, error.strerror)
        return
    grave = path.with_name(f"dead-{os.fstat(lock).st_ino}")  # its name may be ours: process ids come again
    path.rename(grave)
    remove(grave, lock)


def _remove(folder: Path, lock: int) -> None:
    _clear(folder)
    os.close(lock)


def _clear(folder: Path) -> None:
    """Remove it; what cannot be removed is named, for it takes up memory."""

    def tell(_call: object, path: str, what: tuple[type[BaseException], BaseException, object]) -> None:
        if not isinstance(what[1], FileNotFoundError):  # a worker that ends renames its files
            logger.warning("%s stays in memory: %s; remove it by hand", path, what[1])

    shutil.rmtree(folder, onerror=tell)


def _locked_soon(folder: Path) -> int:
    """Lock it within LOCK_WAIT_S. Raises OSError."""
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return _locked(folder)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                raise OSError(f"another process has locked {folder} for {LOCK_WAIT_S:g} s") from None
        time.sleep(_LOCK_RETRY_S)  # flock has no time-out


def _locked(folder: Path) -> int:
    """Lock it. Raises BlockingIOError if another has."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd
