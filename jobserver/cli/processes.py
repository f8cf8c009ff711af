"""The processes that `edl up`, or the start script of the JobServer, owns.

Invariant: none outlives its owner, not even when it is killed: the kernel sends each child SIGTERM when its parent
dies, and each stops its own children on that.
"""

import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from jobserver.cli.client import CommandFailed

TAIL_LINES = 15


class Child:
    """One process; `ended` is set when it has ended. Without a log it writes where its owner does."""

    def __init__(
        self, name: str, module: str, options: Sequence[str], log: Path | None, ended: threading.Event
    ) -> None:
        self.name = name
        self.log = log
        command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", module, *options]
        with ExitStack() as files:
            output = None
            if log is not None:
                log.parent.mkdir(parents=True, exist_ok=True)
                output = files.enter_context(log.open("wb"))
            # A session of its own: Ctrl-C reaches the owner alone, which stops all in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._ended = ended
        threading.Thread(target=self._reap, name=f"edl-{name}", daemon=True).start()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.returncode

    def ask_to_end(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def stop(self, timeout_s: float) -> None:
        """SIGTERM; SIGKILL after `timeout_s`; wait until it has ended."""
        self.ask_to_end()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """Raise CommandFailed, with the end of its log, if it has ended."""
        if self.exit_code is None:
            return
        if self.log is None:
            raise CommandFailed(f"{self.name} ended with exit code {self.exit_code}")
        tail = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        text = "\n  ".join([f"{self.name} ended with exit code {self.exit_code}; the end of {self.log}:", *tail])
        raise CommandFailed(text)

    def _reap(self) -> None:
        self._process.wait()
        self._ended.set()
