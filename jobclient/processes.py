"""Child processes of a JobClient, each under a shim of its own.

Invariant: whatever is started here ends with the JobClient, by whichever death. Exits arrive as callbacks on the event
loop from the shim's pipe; there is no thread and no polling per process. It knows nothing of jobs.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobclient.run_as import RunAs

logger = logging.getLogger(__name__)

LOG_TAIL_LINES = 20
LOG_TAIL_BYTES = 4096
_SHIM = str(Path(__file__).with_name("shim.py"))
#: exit code of a command that could not be executed, as shells report it
NOT_STARTED = 127


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: `cwd` must exist, or `make_cwd` be set; output is appended to `log`, whose directory must exist."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    #: None: as the JobClient does
    run_as: RunAs | None = None
    #: make `cwd` if need be, as the user that the command runs as
    make_cwd: bool = False


class Process:
    """One command under its shim.

    `exited` is done with the exit code (negative for a signal) the moment the command ends; `gone` when nothing that it
    started is left. `pid` is known to the loop soon after the start.
    """

    def __init__(self, command: Command, changed: Callable[["Process"], None]) -> None:
        loop = asyncio.get_running_loop()
        self.command = command
        self.pid: int | None = None
        self.problem: str | None = None
        self.stopping = False
        self.exited: asyncio.Future[int] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._changed = changed
        self._line = b""
        self._shim = _start_shim(command)
        assert self._shim.stdout is not None
        self._output = self._shim.stdout.fileno()
        os.set_blocking(self._output, False)
        loop.add_reader(self._output, self._read)

    def stop(self, timeout_s: float) -> None:
        """Begin the stop ladder, or bring its deadline forward."""
        self.stopping = True
        self._order(f"stop {timeout_s:.3f}\n")

    def kill(self) -> None:
        """SIGKILL to the group, now."""
        self.stopping = True
        assert self._shim.stdin is not None
        if not self._shim.stdin.closed:
            self._shim.stdin.close()

    def _order(self, line: str) -> None:
        assert self._shim.stdin is not None
        if self._shim.stdin.closed or self.gone.done():
            return
        # A broken pipe: the shim is ending, its end of file arrives next.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._shim.stdin.fileno(), line.encode())

    def _read(self) -> None:
        data = os.read(self._output, 65536)
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._report(json.loads(line))
        if not data:
            self._end()

    def _report(self, report: dict[str, int | str]) -> None:
        match report:
            case {"started": int(pid)}:
                self.pid = pid
            case {"exited": int(code)} if not self.exited.done():
                self.exited.set_result(code)
            case {"failed": str(problem)}:
                self.problem = problem
                self.exited.set_result(NOT_STARTED)
        self._changed(self)

    def _end(self) -> None:
        """The shim has ended, and with it all that it watched; if it was killed, its group is ours to kill."""
        asyncio.get_running_loop().remove_reader(self._output)
        if self._shim.stdout is not None:
            self._shim.stdout.close()
        self.kill()
        code = self._shim.wait()
        if not self.exited.done():
            logger.warning("the shim of %s ended with %d before its command", self.command.argv[0], code)
            if self.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            self.exited.set_result(-signal.SIGKILL)
        self.gone.set_result(None)
        self._changed(self)


def _start_shim(command: Command) -> subprocess.Popen[bytes]:
    """Raises OSError, and ValueError for a text that no process can have."""
    options = ["--make-cwd"] if command.make_cwd else []
    environ, passed = dict(command.env), []
    try:
        if command.run_as is not None:
            # What a job wishes to have in its environment (LD_PRELOAD) is not for a shim that runs as root.
            passed = [os.memfd_create("edl-environment")]
            os.write(passed[0], _as_bytes(environ))
            options += [f"--as={command.run_as.word}", f"--environment={passed[0]}"]
            environ = {}
        return subprocess.Popen(
            [sys.executable, "-I", "-S", _SHIM, *options, str(command.log), str(command.cwd), *command.argv],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=passed,
            start_new_session=True,  # Ctrl-C at a terminal is for the JobClient alone
        )
    finally:
        for descriptor in passed:
            os.close(descriptor)


def _as_bytes(environ: Mapping[str, str]) -> bytes:
    """NAME=VALUE, each ended by NUL. Raises ValueError."""
    for name, value in environ.items():
        if "\0" in name + value or "=" in name or not name:
            raise ValueError(f"no process can have the variable {name!r}")
    return b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environ.items())


def begin_log(path: Path) -> None:
    """Make place for a new log; one that another job of the same name left goes to <path>.old, with its writers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.replace(path.with_name(f"{path.name}.old"))


def log_tail(path: Path, lines: int = LOG_TAIL_LINES, size_bytes: int = LOG_TAIL_BYTES) -> str:
    """The last lines of a log, at most `size_bytes` of UTF-8; empty if there is no log."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size_bytes))
            data = file.read(size_bytes)
    except FileNotFoundError:
        return ""
    text = "\n".join(data.decode(errors="replace").splitlines()[-lines:])
    while len(text.encode()) > size_bytes:  # replaced bytes are three bytes long
        text = text[len(text) // 8 + 1 :]
    return text


def exit_text(code: int) -> str:
    """An exit code for people: "exit code 1", "killed by SIGKILL"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
