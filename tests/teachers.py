"""Real teacher servers as processes of a test: started, frozen, killed, and always gone at its end.

    with TeacherProcess() as teacher:             # answers with the ids of the samples: see teacher_models.ids_of
        client = TeacherClient(teacher.url)

Several at once: `with started(TeacherProcess(), TeacherProcess(delay_s=0.05)) as (one, two):`
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

ROOT = Path(__file__).resolve().parents[1]
STOP_TIMEOUT_S = 60.0
IMAGE = "image:uint8:3,8,8"


class TeacherFailed(Exception):
    """Raised when a teacher ends before it serves, with what it said."""


class TeacherProcess:
    """`edl teacher serve` on a free port of the loopback.

    Args:
        model: module:function; those of tests/teacher_models.py are there.
        model_args: for the function; `delay_s` goes there as well.
        options: further options of the command line.
        env: added to the environment.
    """

    def __init__(
        self,
        model: str = "teacher_models:identity",
        *options: str,
        input: str = IMAGE,
        delay_s: float | None = None,
        model_args: dict[str, Any] | None = None,
        port: int = 0,
        env: dict[str, str] | None = None,
    ) -> None:
        arguments = dict(model_args or {}) | ({} if delay_s is None else {"delay_s": delay_s})
        self._command = [sys.executable, "-m", "distill.teacher_server", "--model", model, "--port", str(port)]
        self._command += ["--input", input] if input else []
        self._command += ["--model-args", msgspec.json.encode(arguments).decode()] if arguments else []
        self._command += ["--threads", "1", *options]
        self._env = env or {}
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by __exit__
        #: name of the model, and its hash
        self.model = ""
        self.model_hash = ""
        self.url = ""

    def launch(self) -> Self:
        """Start the process; `await_ready` waits for it."""
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **self._env}
        self._process = subprocess.Popen(
            self._command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        return self

    def await_ready(self) -> Self:
        """Wait for the line with the URL. Raises TeacherFailed."""
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        if len(words) != 5:
            self.process.wait(STOP_TIMEOUT_S)
            raise TeacherFailed(self.log)
        _, self.model, _, self.url, digest = words
        self.model_hash = digest.strip("()")
        return self

    def __enter__(self) -> Self:
        try:
            return (self if self._process is not None else self.launch()).await_ready()
        except BaseException:
            self._end()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        self._log.flush()
        self._log.seek(0)
        return self._log.read()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP: it says nothing and closes nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def leave(self) -> None:
        """SIGTERM; `wait` for its end."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(STOP_TIMEOUT_S)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
        self._log.close()


@contextmanager
def started(*teachers: TeacherProcess) -> Iterator[tuple[TeacherProcess, ...]]:
    """All of them, started at once: most of a start is loading torch."""
    with ExitStack() as stack:
        for teacher in teachers:
            teacher.launch()
        yield tuple(stack.enter_context(teacher) for teacher in teachers)
