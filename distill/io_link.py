"""The trainer's end of its IO process: starts it, posts to it, waits for answers, starts another one when it dies.

Invariant: every batch that was posted and neither taken nor cancelled is known to the IO process that lives: after a
death all slots that were announced, and all batches outside of slots, are posted again. Duplicates are ignored there.

Used from the trainer's thread. DataLoader workers post through `socket` on their own.
"""

import contextlib
import logging
import os
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from distill import io_settings
from distill.errors import DistillError
from distill.io_messages import (
    NO_SLOT,
    Abandon,
    Abandoned,
    Cancel,
    Cancelled,
    Done,
    GaveUp,
    Go,
    Look,
    Post,
    Status,
    Stop,
    decode_answer,
    decode_result,
    encode,
)
from distill.io_settings import IoSettings
from distill.ring import Ring

logger = logging.getLogger(__name__)

_MESSAGE_BYTES = 1 << 16
#: deaths of the IO process in a row, without an answer in between, that are not its teachers' fault
_MOST_DEATHS = 5
_END_S = 5.0


class IoDied(DistillError):
    """Raised when the IO process dies again and again."""


class IoLink:
    """One IO process at a time, and the answers that came from it."""

    def __init__(self, settings: IoSettings, ring: Ring) -> None:
        self._ring = ring
        # Both ends are kept: what workers post while no IO process lives waits in the socket for the next one.
        self.socket, self._far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._settings = msgspec.structs.replace(
            settings, socket_fd=self._far_end.fileno(), ring_fd=ring.fd, slots=ring.slots, slot_bytes=ring.slot_bytes
        )
        self._answers: dict[int, Done | GaveUp | Abandoned] = {}
        self._cancelled = 0
        #: the message that is being read
        self._message = memoryview(bytearray(_MESSAGE_BYTES))
        #: batches outside of slots, to be posted again: message and descriptors
        self._loose: dict[int, tuple[bytes, list[int]]] = {}
        self._deaths = 0
        self.respawns = 0
        self.status: Status | None = None
        #: retries and hedges of the IO processes that died
        self._counted = (0, 0)
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def counts(self) -> tuple[int, int]:
        """Requests that were sent again, and that a second teacher was asked besides; up to a second old."""
        retried, hedged = self._counted
        return (
            (retried, hedged) if self.status is None else (retried + self.status.retried, hedged + self.status.hedged)
        )

    def _start(self) -> None:
        package = str(Path(__file__).resolve().parents[1])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distill.io_process"],
            stdin=subprocess.PIPE,
            pass_fds=(self._ring.fd, self._far_end.fileno()),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:  # dead already: wait() will see it
            pipe.write(io_settings.encode(self._settings))
        self._pidfd = os.pidfd_open(self._process.pid)
        self._poll = select.poll()
        self._poll.register(self.socket, select.POLLIN)
        self._poll.register(self._pidfd, select.POLLIN)

    # ---- what the trainer says ------------------------------------------------------------------------------------

    def go(self, go: Go) -> None:
        """Tell what was agreed on with the teachers: from now on they are asked."""
        self._settings = msgspec.structs.replace(self._settings, go=go)
        self._send(encode(go))

    def post(self, post: Post, descriptors: Sequence[int]) -> None:
        """Post a batch outside of slots; the descriptors stay the caller's, open until it is taken."""
        message = encode(post)
        self._loose[post.seq] = (message, list(descriptors))
        socket.send_fds(self.socket, [message], list(descriptors))

    def cancel(self, below: int) -> None:
        """End all batches with lower numbers; on return nothing is written for them any more."""
        self._settings = msgspec.structs.replace(self._settings, below=below)
        self._loose = {seq: loose for seq, loose in self._loose.items() if seq >= below}
        self._send(encode(Cancel(below)))
        while self._cancelled < below:
            self.wait(None)
        self._answers = {seq: answer for seq, answer in self._answers.items() if seq >= below}

    def abandon(self, seq: int) -> None:
        """Want no predictions for a batch; its answer is Abandoned, or the Done that was faster."""
        self._send(encode(Abandon(seq)))

    def _send(self, message: bytes) -> None:
        self.socket.send(message)

    # ---- what comes -----------------------------------------------------------------------------------------------

    def take(self, seq: int, slot: int) -> Done | GaveUp | Abandoned | None:
        """The answer to the batch in `slot` (or outside of slots), None while there is none. Does not wait."""
        answered = None if slot == NO_SLOT else self._ring.answered(slot, seq)
        if answered is not None:
            self._deaths = 0
            result = decode_result(answered[1])
            return Done(seq, result.outputs, result.teacher, answered[0])
        answer = self._answers.pop(seq, None)
        if answer is None:
            self._receive(seq)
            answer = self._answers.pop(seq, None)
        if answer is not None:
            self._loose.pop(seq, None)
        return answer

    def wait(self, timeout_s: float | None) -> None:
        """Wait until something came, or for `timeout_s`. Raises IoDied."""
        events = self._poll.poll(None if timeout_s is None else timeout_s * 1000)
        if any(fd == self._pidfd for fd, _ in events):
            self._respawn()
        else:
            self._receive()

    def _receive(self, until: int | None = None) -> None:
        """Take what has come; with `until`, only up to the answer of that batch."""
        while until not in self._answers:
            try:
                size = self.socket.recv_into(self._message, _MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            answer = decode_answer(self._message[:size])
            if isinstance(answer, Status):
                self.status = answer
            elif isinstance(answer, Cancelled):
                self._cancelled = max(self._cancelled, answer.below)
            elif isinstance(answer, Look):
                continue  # the slot says it
            elif answer.seq >= self._settings.below:
                self._answers[answer.seq] = answer
                self._deaths = 0

    def _respawn(self) -> None:
        """The IO process is dead: keep what it said, start another one, post again what it did not answer."""
        code = self._process.wait()
        os.close(self._pidfd)
        self._receive()
        self._deaths += 1
        if self._deaths > _MOST_DEATHS:
            raise IoDied(f"the IO process of the DistillReader ended {self._deaths} times in a row, now with {code}")
        logger.warning("the IO process ended with %s; starting another one", code)
        self.respawns += 1
        self._cancelled = max(self._cancelled, self._settings.below)  # the new one knows nothing older
        self._counted, self.status = self.counts, None
        self._start()
        for slot in range(self._ring.slots):
            seq, message = self._ring.announced(slot)
            if message and seq >= self._settings.below and not self._is_answered(seq, slot):
                self._send(message)
        for seq, (message, descriptors) in self._loose.items():
            if seq not in self._answers:
                socket.send_fds(self.socket, [message], descriptors)

    def _is_answered(self, seq: int, slot: int) -> bool:
        return seq in self._answers or self._ring.answered(slot, seq) is not None

    def close(self) -> None:
        """End the IO process."""
        with self.socket, self._far_end:
            try:
                self.socket.send(encode(Stop()), socket.MSG_DONTWAIT)
                self._process.wait(_END_S)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
        os.close(self._pidfd)
