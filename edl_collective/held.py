"""The state that a node holds in memory while its workers go from one world to the next.

Horovod's init() cannot be interrupted: a death there takes every member along that is in it. Their state is then here:
each node's workers put it into a file in shared memory before they come to the gate, and whoever replaces them takes
it from there.

Invariant: no generation after the one that a held state is of has completed a step. So it is never older than what the
training has moved to. How it is kept:
- a held file names the generation up to which that is known, at first the one whose end it shows;
- a worker that is given a place in generation G, before Horovod's init, carries it from G - 1 to G, and throws away
  one of any other generation: this node was not in those between, and cannot know what they did;
- each rank throws it away when its state is equal to the others' in G, which is before it takes part in a step. A step
  needs all ranks, so when one of G is complete, no node that was in G has a held state. Where it cannot be thrown away
  (too many open files), the folder is marked, for which no descriptor is needed, and whoever uses a marked folder
  throws all away first.

What one node's workers do here is done under one lock. Training needs none of it: where something fails, nothing is
held, and that is logged once. The folder belongs to the JobClient, which removes it with the job. It does not know what
a state is made of, nor whether a checkpoint would be newer.
"""

import contextlib
import fcntl
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from checkpoints import CheckpointError
from checkpoints.tree import flatten
from edl_collective.free_memory import free_bytes
from edl_collective.state_file import read_state, reserve_file, size_of, write_state

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NAME = re.compile(r"held-([0-9]+)-([0-9]+)-([0-9]+)")
_MODE = 0o700
#: of the folder: what is in it may be too old
_MARK = stat.S_ISVTX


class Progress(NamedTuple):
    """How far a state is."""

    step: int
    epoch: int

    def beyond(self, other: "Progress") -> bool:
        """Whether it is the one to go on from. At the end of an epoch that is the one before it.

        Who is behind the end may not have saved it, and who comes to it once more loses nothing.
        """
        return (self.step, -self.epoch) > (other.step, -other.epoch)


class _File(NamedTuple):
    path: Path
    generation: int
    progress: Progress


class Held:
    """The held state of one job on one node, as one of its workers sees it.

    Arguments: folder, in memory, shared by the job's workers on this node and by nobody else; share, the part of the
    memory that is free which a held state may take, 0 to 1 (EDL_HELD_SHARE; 0 holds nothing).
    """

    def __init__(self, folder: Path, share: float) -> None:
        self._folder = folder
        self._share = share
        #: the generation of which this worker is or was a member, 0 before the first
        self._generation = 0
        self._told_too_large = False
        self._told_failure = False

    def hold(self, progress: Progress, make_state: Callable[[], Any]) -> None:
        """This worker left its generation with a whole state: hold it, unless another did with one as far.

        Nothing is held, and that is logged, without the memory for it or when the state cannot be stored.
        """
        if self._share:
            self._safely(lambda: self._hold(progress, make_state))

    def reserve(self, state: Any) -> threading.Thread | None:
        """Take the memory for a state of this size now, beside the training, so that no pause waits for its pages.

        Returns the thread that does it, None if nothing can be held.
        """
        try:
            size_bytes = size_of(flatten(state)[1])
        except CheckpointError:
            return None  # hold() will say so
        if not self._share or not size_bytes:
            return None
        thread = threading.Thread(target=lambda: self._safely(lambda: self._reserve(size_bytes)), name="edl-held")
        thread.start()
        return thread

    def carry(self, generation: int) -> None:
        """This worker has a place in `generation`; call before Horovod's init()."""
        self._generation = generation
        self._safely(self._carry)

    def newest(self) -> Progress | None:
        """How far the held state is, None when there is none for this generation."""
        file = self._safely(self._furthest)
        return None if file is None else file.progress

    def take(self) -> Any:
        """The state whose progress newest() told. Raises OSError or ValueError when it is gone or cannot be read."""
        with self._locked():
            file = self._furthest()
            if file is None:
                raise FileNotFoundError(f"{self._folder} holds no state any more")
            return read_state(file.path)

    def drop(self) -> None:
        """What is held is of no use any more, as this worker's state is equal to that of all others, or it is spoilt.

        The memory stays, to be written over: for that it has its pages already.
        """
        self._safely(self._throw_away, self._mark)

    @property
    def _scratch(self) -> Path:
        """Not held: being written, or memory to write over."""
        return self._folder / "scratch"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the workers of this job on this node; the kernel lets go of the lock of one that dies."""
        self._folder.mkdir(mode=_MODE, parents=True, exist_ok=True)  # some systems empty /dev/shm when a user logs out
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_mode & _MARK:
                self._throw_away()
                os.fchmod(fd, _MODE)
            yield
        finally:
            os.close(fd)

    def _safely(self, act: Callable[[], T], failed: Callable[[], None] = lambda: None) -> T | None:
        """act() under the lock; after an error of the system failed(), and None."""
        try:
            with self._locked():
                return act()
        except OSError as error:
            failed()
            if not self._told_failure:
                self._told_failure = True
                logger.warning("holding the state in memory fails, training goes on without it: %s", error)
            return None

    def _hold(self, progress: Progress, make_state: Callable[[], Any]) -> None:
        began = time.monotonic()
        held = self._carried()
        if any(not progress.beyond(file.progress) for file in held):
            return
        try:
            tree, tensors = flatten(make_state())
            if not self._has_room(size_of(tensors)):
                return
            write_state(self._scratch, tree, tensors)
            self._scratch.rename(self._folder / _name(self._generation, progress))
        except (OSError, CheckpointError, RuntimeError) as error:  # RuntimeError: torch has no memory for a copy
            logger.warning("the state is not held in memory: %s", error)
            self._scratch.unlink(missing_ok=True)
            return
        for file in held:
            file.path.rename(self._scratch)
        logger.debug("hold step %d in memory: %.1f ms", progress.step, (time.monotonic() - began) * 1000)

    def _reserve(self, size_bytes: int) -> None:
        if not self._scratch.exists() and not self._files() and self._has_room(size_bytes):
            reserve_file(self._scratch, size_bytes)

    def _carry(self) -> None:
        for file in self._files():
            if file.generation == self._generation - 1:
                file.path.rename(self._folder / _name(self._generation, file.progress))
            elif file.generation != self._generation:
                file.path.rename(self._scratch)

    def _mark(self) -> None:
        # Who may not do this may not rename either, and carries nothing into another generation.
        with contextlib.suppress(OSError):
            self._folder.chmod(_MODE | _MARK)

    def _throw_away(self) -> None:
        for file in self._files():
            file.path.rename(self._scratch)

    def _files(self) -> list[_File]:
        return [file for path in self._folder.iterdir() if (file := _parse(path)) is not None]

    def _carried(self) -> list[_File]:
        return [file for file in self._files() if file.generation == self._generation]

    def _furthest(self) -> _File | None:
        """The file to go on from, None when there is none of this generation."""
        found: _File | None = None
        for file in self._carried():
            if found is None or file.progress.beyond(found.progress):
                found = file
        return found

    def _has_room(self, size_bytes: int) -> bool:
        have = self._scratch.stat().st_size if self._scratch.exists() else 0
        limit = int(self._share * free_bytes(self._folder))
        if size_bytes - have <= limit:
            return True
        if not self._told_too_large:
            self._told_too_large = True
            logger.warning(
                "the state of %d MB is not held in memory, of which it may take %d MB: a worker that dies while the "
                "world forms would send all back to the checkpoint. Enlarge /dev/shm, the container's memory or "
                "EDL_HELD_SHARE (now %g)",
                *(size_bytes >> 20, limit >> 20, self._share),
            )
        return False


def _name(generation: int, progress: Progress) -> str:
    return f"held-{generation}-{progress.step}-{progress.epoch}"


def _parse(path: Path) -> _File | None:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    generation, step, epoch = map(int, match.groups())
    return _File(path, generation, Progress(step, epoch))
