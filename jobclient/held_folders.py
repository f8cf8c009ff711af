"""Folders in memory in which the workers of this node hold the states of their jobs between two worlds.

Invariant: a folder is of one job that this JobClient knows, told from one of the same name that was submitted later; it
goes with the job, and all go with the JobClient. Those of a JobClient that was killed are removed by the next one of
this user. What is in them, and when it may be used, is the workers' affair (edl_collective/held.py).
"""

import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path

logger = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")  # noqa: S108 - what is made there is checked to be ours
#: (job, when it was submitted)
Key = tuple[str, float]


class HeldFolders:
    """Begins with no folder; `close` removes what there is. Where the machine has no /dev/shm there never is one."""

    def __init__(self, node: str, memory: Path = MEMORY) -> None:
        self._node = node
        self._memory = memory
        self._base: Path | None = None
        self._lock: int | None = None
        self._folders: dict[Key, Path] = {}

    def folder(self, job: str, submitted_at: float) -> Path | None:
        """The folder of a job, made when it is first asked for; None where there can be none."""
        try:
            if self._base is None:
                self._base, self._lock = _open_base(self._memory, f"{os.getpid()}-{self._node[:32]}")
            folder = self._folders.setdefault((job, submitted_at), self._base / f"{job}-{submitted_at:.6f}")
            folder.mkdir(mode=0o700, exist_ok=True)
            return folder
        except OSError as error:
            logger.warning("job %s: its state is not held in memory: %s", job, error)
            return None

    def keep(self, jobs: Collection[Key]) -> None:
        """Remove the folders of all others."""
        for key in self._folders.keys() - set(jobs):
            shutil.rmtree(self._folders.pop(key), ignore_errors=True)

    def close(self) -> None:
        """Remove everything; call when no worker is left."""
        self.keep(())
        if self._base is not None and self._lock is not None:
            shutil.rmtree(self._base, ignore_errors=True)
            os.close(self._lock)
            self._base = self._lock = None


def _open_base(memory: Path, name: str) -> tuple[Path, int]:
    """A folder of this process that only this user can enter, and its lock, which tells others that we live."""
    ours = memory / f"edl-{os.getuid()}"
    ours.mkdir(mode=0o700, exist_ok=True)
    status = ours.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise OSError(f"{ours} must be a directory of this user with mode 0700; remove it")
    base = ours / name
    everybody = _locked(ours, fcntl.LOCK_EX)  # nobody sweeps a folder that is made but not locked yet
    try:
        for path in ours.iterdir():
            _remove_if_dead(path)
        base.mkdir(mode=0o700)
        return base, _locked(base, fcntl.LOCK_EX)
    finally:
        os.close(everybody)


def _remove_if_dead(path: Path) -> None:
    try:
        lock = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # its JobClient lives
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _locked(folder: Path, how: int) -> int:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
    except BaseException:
        os.close(fd)
        raise
    return fd
