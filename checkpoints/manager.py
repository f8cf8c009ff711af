"""CheckpointManager: when to save, the copy that the training waits for, and the thread that writes it.

Invariants:
- One save is in flight at most. Its copy of the state is never written over, and there is one such copy: memory is the
  size of the state and is taken once.
- What failed is told: logged when it happens, given to `on_result`, and raised by the next call.
- The process does not end before a save in flight has: its thread is not a daemon.
- Nothing is read or written in the caller's thread by an asynchronous `save`, and no client of a file system is used in
  a process other than the one that made the manager.
It belongs to one process of a job (rank 0), and to one thread of it, but for `save_soon`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType, TracebackType
from typing import Any, Literal, Self

from checkpoints.at_exit import wait_at_exit
from checkpoints.drivers import Driver, open_driver
from checkpoints.errors import CheckpointError
from checkpoints.layout import DEFAULT_FOLDER, ShardName
from checkpoints.loader import newest_first, settled
from checkpoints.policy import Every, Mark, due, mark
from checkpoints.progress import Progress, ProgressLog
from checkpoints.restore import Restored, restore
from checkpoints.retention import Condition, Keep
from checkpoints.saver import commit
from checkpoints.shard_format import FlatState
from checkpoints.shard_writer import STREAM_BYTES, Source
from checkpoints.staging import Staging, states_of, streamed
from checkpoints.store import CheckpointInfo
from checkpoints.train_status import TrainStatus

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveResult:
    """How a save ended.

    Attributes:
        status: what was saved.
        info: the checkpoint, None if the save failed.
        error: why it failed, None if it did not.
        blocked_s: how long the training waited for it.
        seconds: from the call until it was durable, or had failed.
    """

    status: TrainStatus
    info: CheckpointInfo | None
    error: CheckpointError | None
    blocked_s: float
    seconds: float


@dataclass(frozen=True)
class _Save:
    status: TrainStatus
    sources: dict[ShardName, Source]
    size_bytes: int
    began_s: float
    blocked_s: float
    driver_epoch: int


class CheckpointManager:
    """Saves and loads the checkpoints of one training; a context manager, which waits for the last save.

    Args:
        url: the checkpoint folder, a path or a URL of any file system.
        keep: how many of the newest valid checkpoints stay, or rules for that; None removes nothing.
        every: when `save` saves: a rule, or None for each call.
        async_save: write in a thread, from a copy of the state in host memory. False writes from the live state, with
            32 MiB of memory, and returns when it is durable.
        when_busy: what `save` does while another save is in flight. "wait": until that has ended. "replace": return at
            once; the request is not copied yet, and the first call after the save in flight saves the newer state in
            its place.
        driver: which driver to use, by default the one of the URL's scheme.
        driver_epoch: orders savers that replace one another: one of a lower epoch never wins over one of a higher.
        retry_s: how long a file that fails to be written is written again while the file system answers.
        on_progress: called in the saving thread about once a second, and when all is written.
        on_result: called in the saving thread when a save has ended, either way. What these raise is logged.
        clock: seconds, monotonic.
        now: the wall clock, for the time shown to people.

    Raises:
        CheckpointUnsupported: if no driver serves the URL.
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] = DEFAULT_FOLDER,
        *,
        keep: int | Keep | None = 3,
        every: Every | None = None,
        async_save: bool = True,
        when_busy: Literal["wait", "replace"] = "wait",
        driver: str | Driver | None = None,
        driver_epoch: int = 0,
        retry_s: float = 60.0,
        on_progress: Callable[[Progress], None] | None = None,
        on_result: Callable[[SaveResult], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if when_busy not in ("wait", "replace"):
            raise ValueError(f"when_busy must be 'wait' or 'replace'; it is {when_busy!r}")
        if driver_epoch < 0:
            raise ValueError(f"driver_epoch must not be negative; it is {driver_epoch}")
        self.url = os.fspath(url)
        #: raise it when a new driver forms the world; it never needs to be lowered
        self.driver_epoch = driver_epoch
        self._keep = Keep(keep) if isinstance(keep, int) else keep
        self._every = every
        self._async = async_save
        self._when_busy = when_busy
        self._own_driver = driver is None or isinstance(driver, str)
        self._driver = open_driver(self.url, driver)
        self._retry_s = retry_s
        self._on_progress = on_progress
        self._on_result = on_result
        self._clock = clock
        self._now = now
        self._pid = os.getpid()
        self._staging = Staging()
        #: the save in flight; its thread alone changes _failure and _last meanwhile
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        self._last: Mark | None = None
        self._last_durable: Mark | None = None
        self._asked: str | None = None
        self._pending = False
        #: added to driver_epoch: what is saved after a load is newer than all that was there, even if an older one was
        #: loaded, and than what a process of an earlier run that still lives may save
        self._floor = 0
        self._began_s = clock()
        #: what the last `load` found, None before the first
        self.restored: Restored | None = None

    # ---- saving ---------------------------------------------------------------------------------------------------

    def save(self, status: TrainStatus, /, *, force: bool = False, **stateful: Any) -> bool:
        """Save if it is due; call it between two steps, as often as you like.

        Args:
            status: where the training stands; its global_step is the checkpoint's order.
            force: save in any case, and wait for a save in flight, whatever `when_busy` says.
            stateful: by name, objects with `state_dict()`, or nested dicts and lists of tensors and plain values.

        Returns:
            Whether a save was begun (async) or done.

        Raises:
            CheckpointError: of the kind of its cause, if the save before failed, or, without async_save, this one.
            StateNotSupported: if the state holds something that cannot be stored without pickling.
        """
        self._check_process()
        self._reap(wait=False)
        now = mark(status, self._clock())
        asked = "forced" if force else self._asked
        last = self._last or Mark(-1, 0, self._began_s)
        reason = "it was due while another save was in flight" if self._pending else None
        if due(self._every, last, now, asked or reason) is None:
            return False
        if self._thread is not None:
            if self._when_busy == "replace" and asked is None:
                self._pending = True
                return False
            self._reap(wait=True)
        self._begin(status, stateful, now)
        return True

    def save_soon(self, reason: str = "it was asked for") -> None:
        """Let the next call of `save` save, whatever `every` says; safe in a signal handler and in any thread."""
        self._asked = reason

    def save_on(self, signum: int = signal.SIGTERM) -> None:
        """On this signal ask for a save instead of dying: a preemption notice. Call it in the main thread.

        The training then sees `save_asked`, saves at its next step boundary, and ends by itself. A handler that was
        there before is called, too.
        """
        before = signal.getsignal(signum)

        def handle(number: int, frame: FrameType | None) -> None:
            self.save_soon(f"{signal.Signals(number).name} was received")
            if callable(before):
                before(number, frame)

        signal.signal(signum, handle)

    @property
    def save_asked(self) -> str | None:
        """Why a save was asked for that no call of `save` has done yet; None if none was."""
        return self._asked

    def reserve(self, **stateful: Any) -> None:
        """Take the memory for copies of a state like this now, beside the training; a save in the meantime waits.

        Without it the first save takes the memory, and blocks longer than the others: several times the copy, where
        the machine has no huge pages.
        """
        self._check_process()
        if self._async and self._thread is None:
            states = states_of(stateful)
            self._thread = threading.Thread(
                target=self._reserve, args=(states,), name="edl-checkpoint-memory", daemon=True
            )
            self._thread.start()

    def _reserve(self, states: dict[ShardName, FlatState]) -> None:
        try:
            self._staging.reserve(states)
        except Exception as error:  # raised by the next call
            self._failure = CheckpointError(f"there is no memory for a copy of the state: {error}", url=self.url)

    @property
    def memory_bytes(self) -> int:
        """Host memory that saving holds: one copy of the state, or the buffer for writing from the live one."""
        return self._staging.memory_bytes if self._async else STREAM_BYTES

    @property
    def in_flight(self) -> bool:
        """Whether a save is being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until the save in flight is durable. Returns False if timeout_s passed before.

        Raises:
            CheckpointError: of the kind of its cause, if it failed.
        """
        self._check_process()
        return self._reap(wait=True, timeout_s=timeout_s)

    def close(self) -> None:
        """Wait for the save in flight and let go of the file system.

        Raises:
            CheckpointError: of the kind of its cause, if it failed.
        """
        try:
            self.wait()
        finally:
            if self._pending:
                logger.warning(
                    "a save was due while another was in flight, and none came after: it is not in %s. End with "
                    "save(..., force=True), or use when_busy='wait'",
                    self.url,
                )
            if self._own_driver:
                self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CheckpointError:
            if error is None:
                raise
            # The error that ends the block is not hidden by this one, which was logged when it happened.

    # ---- loading --------------------------------------------------------------------------------------------------

    def load(self, *, strict: bool = True, checkpoint_no: int | None = None, **stateful: Any) -> TrainStatus | None:
        """Load the newest valid checkpoint into objects, on whatever device they are; None if there is none.

        Every shard that is asked for is verified before an object is changed; others are not read, so
        `load(model=model)` takes the weights alone out of a training's checkpoint. What was passed over, and why, is
        in `restored.skipped`. What this manager saves from now on is newer than everything in the folder.

        Args:
            strict: each object must be in the checkpoint and fit exactly. False loads by name what fits, and leaves
                the rest as it is.
            checkpoint_no: load this one and no other.
            stateful: by the name they were saved under, objects with `load_state_dict()`, or dicts to be filled.

        Raises:
            CheckpointMismatch: if something does not fit.
            CheckpointNotFound: if there is no checkpoint of that number.
            CheckpointDamaged: if there are checkpoints and none can be used.
            CheckpointUnavailable: if the file system cannot answer; an outage is never "no checkpoint".
        """
        self.wait()
        self.restored = restore(self._driver, stateful, strict=strict, checkpoint_no=checkpoint_no)
        if self.restored is None:
            return None
        self._floor = self.restored.highest_epoch + 1
        self._last = self._last_durable = mark(self.restored.manifest.status, self._clock())
        return self.restored.manifest.status

    def latest(self) -> CheckpointInfo | None:
        """The newest valid checkpoint: manifest and sizes are checked, contents are not read. None if there is none.

        Raises:
            CheckpointUnavailable: if the file system cannot answer.
        """
        self._check_process()
        return settled(self._driver, self._latest)

    def _latest(self) -> CheckpointInfo | None:
        found = (examined for examined in newest_first(self._driver, None) if examined.condition is Condition.VALID)
        examined = next(found, None)
        return None if examined is None else examined.info(self.url)

    # ---- the saving thread ----------------------------------------------------------------------------------------

    def _begin(self, status: TrainStatus, stateful: dict[str, Any], now: Mark) -> None:
        began_s = self._clock()
        states = states_of(stateful)
        sources = self._staging.copy(states) if self._async else streamed(states)
        size_bytes = sum(state.data_bytes for state in states.values())
        blocked_s = self._clock() - began_s
        epoch = self.driver_epoch + self._floor
        self._last, self._asked, self._pending = now, None, False
        save = _Save(status, sources, size_bytes, began_s, blocked_s, epoch)
        if self._async:
            # Not a daemon: the interpreter waits for it at its end.
            self._thread = threading.Thread(target=self._write, args=(save, now), name="edl-checkpoint-save")
            self._thread.start()
            wait_at_exit(self._thread)
        else:
            self._write(save, now)
            self._reap(wait=False)

    def _write(self, save: _Save, now: Mark) -> None:
        progress = ProgressLog(save.size_bytes, self._clock, self._on_progress)
        info: CheckpointInfo | None = None
        try:
            info = commit(
                self._driver,
                save.status,
                save.sources,
                driver_epoch=save.driver_epoch,
                keep=self._keep,
                retry_s=self._retry_s,
                now=self._now,
                progress=progress.wrote,
            )
            self._last_durable = now
            progress.done(info.name)
        except BaseException as error:  # raised by the next call: nothing may end a save unseen
            self._failed(save, error)
        if self._on_result is not None:
            seconds = self._clock() - save.began_s
            blocked_s = save.blocked_s if self._async else seconds
            try:
                self._on_result(SaveResult(save.status, info, self._failure, blocked_s, seconds))
            except Exception:
                logger.exception("on_result raised; the checkpoint is not affected")

    def _failed(self, save: _Save, error: BaseException) -> None:
        text = f"the checkpoint of step {save.status.global_step} was not saved in {self.url}: {error}"
        kind = type(error) if isinstance(error, CheckpointError) else CheckpointError
        self._failure = kind(text, url=self.url, operation="save")
        self._failure.__cause__ = error
        self._last = self._last_durable  # it is due again
        logger.error("%s", text, exc_info=None if isinstance(error, CheckpointError) else error)

    def _reap(self, *, wait: bool, timeout_s: float | None = None) -> bool:
        """Take note of a save that has ended; returns whether none is in flight. Raises what it failed with."""
        if self._thread is not None:
            if wait:
                self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return True

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise CheckpointError(
                f"this CheckpointManager belongs to process {self._pid} and was inherited by a fork: make one in the "
                "process that saves",
                url=self.url,
            )
