"""Looks at checkpoints on behalf of a JobServer, each by a process of its own with a time limit.

Invariant: no file system can hold up the JobServer. Nobody waits longer than twice the limit and a moment: for a turn,
and for the answer. A process that cannot be killed, as one that hangs in the kernel, is left, and no other is started
for its URL until it has gone. Who asks while a look goes on gets its answer; who asks soon after gets it again.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from edl_collective.coord.clock import Clock

Json = dict[str, Any]

LIMIT_S = 10.0
#: how long an answer is given again
KEEP_S = 3.0
#: processes at a time
MOST_AT_ONCE = 2
#: a process that was killed ends within, unless it hangs in the kernel
_KILL_S = 1.0
_MOST_URLS = 256
COMMAND = (sys.executable, "-m", "jobserver.checkpoint_look")


@dataclass(slots=True)
class _Look:
    """`answer` is what the process told, with `at` (wall time) and `took_s`."""

    answer: Future[Json] = field(default_factory=Future)
    process: subprocess.Popen[bytes] | None = None
    #: monotonic time until which the answer is good; None while the look goes on
    good_until_s: float | None = None


class CheckpointLooks:
    """For any thread."""

    def __init__(self, clock: Clock, command: Sequence[str] = COMMAND, limit_s: float = LIMIT_S) -> None:
        self._clock = clock
        self._command = command
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(MOST_AT_ONCE)
        self._looks: dict[str, _Look] = {}
        self._closed = False

    def at(self, url: str) -> Future[Json]:
        """What is at `url`: `checkpoints` and `total`, or `problem`; with `at` and `took_s`. It never fails."""
        with self._lock:
            known = self._looks.get(url)
            if known is not None and self._serves(known):
                return known.answer
            look = self._looks[url] = _Look()
            self._forget_oldest()
            if self._closed:
                look.answer.set_result({"problem": "this JobServer ends"})
                return look.answer
        threading.Thread(target=self._run, args=(url, look), name="edl-checkpoint-look", daemon=True).start()
        return look.answer

    def close(self) -> None:
        """Kill those that look; nobody else can begin."""
        with self._lock:
            self._closed = True
            looks = list(self._looks.values())
        for look in looks:
            if look.process is not None:
                _kill(look.process)

    def _serves(self, look: _Look) -> bool:
        if look.good_until_s is None:
            return True
        if look.process is not None and look.process.poll() is None:
            return True  # it hangs still
        return self._clock.monotonic_s() < look.good_until_s

    def _forget_oldest(self) -> None:
        for url in list(self._looks)[: max(0, len(self._looks) - _MOST_URLS)]:
            if self._looks[url].good_until_s is not None:
                del self._looks[url]

    def _run(self, url: str, look: _Look) -> None:
        began_s = self._clock.monotonic_s()
        at = self._clock.wall_s()
        if not self._turns.acquire(timeout=self._limit_s):
            found: Json = {"problem": f"{MOST_AT_ONCE} other looks at checkpoints wait for their file systems"}
        else:
            try:
                found = self._asked(url, look)
            finally:
                self._turns.release()
        now_s = self._clock.monotonic_s()
        look.good_until_s = now_s + KEEP_S
        look.answer.set_result({**found, "at": at, "took_s": round(now_s - began_s, 3)})

    def _asked(self, url: str, look: _Look) -> Json:
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # client libraries talk there
                start_new_session=True,
            )
        except OSError as error:
            return {"problem": f"no process can be started to look: {error.strerror}"}
        with self._lock:
            look.process = process
            closed = self._closed
        if closed:
            _kill(process)
        try:
            said, _ = process.communicate(url.encode(), timeout=self._limit_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_KILL_S)
            return {"problem": f"the file system did not answer within {self._limit_s:g} s"}
        return _read(said, process.returncode)


def _read(said: bytes, status: int) -> Json:
    try:
        found: Json = json.loads(said)
    except ValueError:
        return {"problem": f"the look at it ended with status {status}"}
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return  # its number may be another's by now
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
