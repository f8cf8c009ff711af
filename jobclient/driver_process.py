"""The driver of one job as a process of this node: started, watched, stopped. jobclient.decide says when."""

import logging
from collections.abc import Callable
from dataclasses import replace

from edl_collective.coord.clock import Clock
from edl_collective.coord.records import DriverRecord
from jobclient.decide import LocalDriver, driver_died, driver_seen
from jobclient.processes import Command, Process, exit_text, log_tail

logger = logging.getLogger(__name__)


class Driver:
    """Keeps its history of deaths across starts, so that a driver that keeps dying is started ever more slowly."""

    def __init__(self, job: str, submitted_at: float, clock: Clock, changed: Callable[[], None]) -> None:
        self.view = LocalDriver(job, False, submitted_at)
        self._clock = clock
        self._changed = changed
        self._process: Process | None = None
        self._started_s = 0.0

    def start(self, command: Command) -> None:
        """Start it. A command that cannot be started counts as a death."""
        self._started_s = self._clock.monotonic_s()
        try:
            command.log.parent.mkdir(parents=True, exist_ok=True)
            self._process = Process(command, self._process_changed)
        except (OSError, ValueError) as error:  # ValueError: a variable that no process can have
            self._died(f"cannot be started: {error}")
            return
        self.view = replace(self.view, running=True, stopping=False, registered=False, missing_since_s=None)

    def seen(self, record: DriverRecord | None) -> None:
        """`record`: who drives the job, as ZooKeeper has it now."""
        if self._process is not None and self.view.running:
            ours = record is not None and record.pid == self._process.pid
            self.view = driver_seen(self.view, ours, self._clock.monotonic_s())

    def stop(self, timeout_s: float) -> None:
        """Begin the stop ladder."""
        if self._process is not None and self.view.running:
            self.view = replace(self.view, stopping=True)
            self._process.stop(timeout_s)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _process_changed(self, process: Process) -> None:
        if not process.gone.done() or process is not self._process:
            return
        if self.view.stopping:
            self.view = LocalDriver(self.view.job, False, self.view.submitted_at)
            self._changed()
            return
        ended = process.problem or exit_text(process.exited.result())
        tail = log_tail(process.command.log, lines=3)
        self._died(f"ended with {ended}" + (f":\n{tail}" if tail else ""))

    def _died(self, how: str) -> None:
        now_s = self._clock.monotonic_s()
        self.view = driver_died(self.view, lived_s=now_s - self._started_s, now_s=now_s)
        pause_s = self.view.not_before_s - now_s
        logger.warning("job %s: the driver %s; it may start again in %.1f s", self.view.job, how, pause_s)
        self._changed()
