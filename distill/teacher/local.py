"""Teacher servers on this machine, for examples and tools: started together, and gone when their owner is.

    with LocalTeachers("--model", "nets:teacher", "--checkpoint", "t.pt", "--input", "image:uint8:1,8,8") as found:
        reader.set_fixed_teacher(found.addresses)

Each is `python -m distill.teacher_server` on a free port of the loopback. Invariant: none outlives its owner, not even
when that is killed. Imports no torch.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from distill.errors import DistillError

STOP_TIMEOUT_S = 10.0
#: where this package was imported from, for a checkout that is not installed
_ROOT = Path(__file__).resolve().parents[2]
_LOG_TAIL_LINES = 8


class LocalTeacherFailed(DistillError):
    """Raised when a teacher ended before it served; says what it said."""


class LocalTeachers:
    """A context manager: `count` servers with the same options.

    Args:
        options: of the teacher's command line, but for --host and --port.
        count: how many.
        folder: where they run, so that `module:function` of --model is found there; None: here.

    Raises LocalTeacherFailed on entry.
    """

    def __init__(self, *options: str, count: int = 1, folder: Path | None = None) -> None:
        self._options, self._count, self._folder = options, count, folder
        self._stack = ExitStack()
        self._processes: list[subprocess.Popen[str]] = []
        #: of each, http://127.0.0.1:port
        self.urls: tuple[str, ...] = ()
        #: the model's name at them
        self.model = ""

    @property
    def addresses(self) -> str:
        """As --distill_teachers takes them: 127.0.0.1:port,127.0.0.1:port."""
        return ",".join(url.removeprefix("http://") for url in self.urls)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the servers."""
        return tuple(process.pid for process in self._processes)

    def __enter__(self) -> Self:
        with self._stack:  # all at once: most of a start is loading torch
            started = [self._start() for _ in range(self._count)]
            self.urls = tuple(self._await_ready(process, log) for process, log in started)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()  # all, before the first is waited for
        self._stack.close()

    def _start(self) -> tuple[subprocess.Popen[str], IO[str]]:
        log = self._stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115  closed by the stack
        command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "distill.teacher_server", "--port", "0"]
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # Out of the terminal's process group: Ctrl-C reaches the owner alone, which ends them in order.
        process = subprocess.Popen(
            [*command, *self._options],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            process_group=0,
        )
        self._stack.callback(_stop, process)
        self._processes.append(process)
        return process, log

    def _await_ready(self, process: "subprocess.Popen[str]", log: IO[str]) -> str:
        """The URL in the line that a teacher says when it serves."""
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if len(words) != 5:
            process.wait(STOP_TIMEOUT_S)
            log.seek(0)
            raise LocalTeacherFailed(f"a teacher did not start: {_end(log.read().splitlines())}")
        _, self.model, _, url, _ = words
        return url


def _end(lines: Sequence[str]) -> str:
    return " / ".join(lines[-_LOG_TAIL_LINES:]) or "it said nothing"


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()
