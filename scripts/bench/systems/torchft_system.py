"""torchft: a lighthouse, and one replica group of one process for each worker."""

import os
import signal
import sys
from pathlib import Path

from bench.errors import NotApplicable
from bench.systems.base import JobOptions, System, free_port

LIGHTHOUSE = "--min_replicas 1 --quorum_tick_ms 20 --join_timeout_ms 1000 --heartbeat_timeout_ms 1000"


class Torchft(System):
    """The lighthouse is the coordinator; worlds are formed by it and by the managers inside the workers."""

    name = "torchft"
    program = "torchft_job.py"
    starts_before_pause = True
    config = (
        f"torchft_lighthouse {LIGHTHOUSE}; replica groups of one process, ProcessGroupGloo, time-outs 5 s, "
        "asynchronous quorum, heartbeat 100 ms"
    )

    def __init__(self, base: Path, max_np: int, job: JobOptions) -> None:
        super().__init__(base, max_np, job)
        self._port = free_port()
        #: names of the replicas that should train; in a log, the rank of r<n> is n
        self._slots: list[str] = []

    def start(self, size: int) -> None:
        command = [str(Path(sys.executable).parent / "torchft_lighthouse"), "--bind", f"127.0.0.1:{self._port}"]
        self.spawn("lighthouse", [*command, *LIGHTHOUSE.split()])
        self.resize(size)

    def resize(self, size: int) -> None:
        while len(self._slots) < size:
            self._add_replica()
        while len(self._slots) > size:
            self.reap(self._slots.pop(), signal.SIGTERM)

    def kill_worker(self) -> None:
        self.reap(self._slots.pop(), signal.SIGKILL)

    def kill_coordinator(self) -> None:
        self.reap("lighthouse", signal.SIGKILL)

    def kill_driver(self) -> None:
        raise NotApplicable("worlds are formed by the lighthouse (coordinator-kill) and inside the workers (kill-*)")

    def lose_node(self) -> None:
        """Freeze the last half of the replicas: nothing is closed, nothing answers."""
        half = len(self._slots) // 2
        self._slots, frozen = self._slots[:half], self._slots[half:]
        for name in frozen:
            os.kill(self.processes.pop(name).pid, signal.SIGSTOP)

    def _add_replica(self) -> None:
        slot = next(n for n in range(self.max_np) if f"r{n}" not in self._slots)
        name = f"r{slot}"
        self._slots.append(name)
        command = [sys.executable, *self.job_command("--slot", str(slot))]
        self.spawn(name, command, TORCHFT_LIGHTHOUSE=f"http://127.0.0.1:{self._port}")
