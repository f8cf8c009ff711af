"""What a system must be able to do to take part, and what all of them do alike: files, processes, waiting for worlds.

Invariant: every process of a system carries its tag in the environment, and `close` leaves none of them.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.errors import SystemFailed
from bench.step_files import StepFiles
from bench.steps import Step
from jobserver.drill.tagged import processes_with

ROOT = Path(__file__).resolve().parents[3]
JOBS = ROOT / "scripts" / "bench" / "jobs"
TAG = "EDL_BENCH_TAG"
POLL_S = 0.05
#: a world whose ranks have all completed a step within this time is at work; longer than a step on busy cores
RECENT_S = 2.0


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The job of a session; what differs between cases."""

    step_s: float = 0.02
    frozen_mb: int = 0
    #: completed steps between two checkpoints (torchrun) or commits (horovod)
    save_every: int = 20


class System(ABC):
    """One system with one job. Use: start, then resize and do things to it, close."""

    name: str
    #: file of the job in bench/jobs
    program: str
    #: how it is set up, for the report
    config: str
    #: a new worker starts while the others train, so what comes before a pause is the cost of its start
    starts_before_pause = False

    def __init__(self, base: Path, max_np: int, job: JobOptions) -> None:
        self.base = base
        self.max_np = max_np
        self.job = job
        self.log_dir = base / "steps"
        self._files = StepFiles(self.log_dir)
        self.tag = uuid.uuid4().hex
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    # ---- what a system does its own way ---------------------------------------------------------------------------

    @abstractmethod
    def start(self, size: int) -> None:
        """Bring everything up and ask for `size` workers; returns before they train."""

    @abstractmethod
    def resize(self, size: int) -> None:
        """Ask for a world of `size`, as a user of the system does; returns before it is there."""

    def prepare_coordinator_loss(self) -> None:
        """Start what a careful user of the system has against the loss of its coordinator, if there is such a thing."""
        return

    @abstractmethod
    def kill_coordinator(self) -> None:
        """SIGKILL to the process that decides about the job's size."""

    def prepare_node_loss(self) -> None:
        """Wait until the system has been up long enough to judge a lost node as it usually would."""
        return

    @abstractmethod
    def kill_driver(self) -> None:
        """SIGKILL to the process that forms the worlds. NotApplicable where there is none of its own."""

    @abstractmethod
    def lose_node(self) -> None:
        """Make everything on one node of two fall silent, by SIGSTOP, without closing anything."""

    # ---- the same for all ------------------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        """SIGKILL to the worker of the highest rank."""
        world = self.present_world()
        os.kill(max(world, key=lambda step: step.rank).pid, signal.SIGKILL)

    def steps(self) -> list[Step]:
        """All completed steps, in order of time."""
        return self._files.read()

    def present_world(self) -> list[Step]:
        """The newest step of each rank, if all ranks of the newest world have completed one just now; else nothing."""
        steps = [step for step in self.steps() if step.at_s > time.monotonic() - RECENT_S]
        if not steps:
            return []
        size = steps[-1].size
        newest = {step.rank: step for step in steps if step.size == size}
        begun_s = max(step.entered_s for step in newest.values())
        disagree = any(step.size != size and step.at_s > begun_s for step in steps)
        return [] if disagree or len(newest) != size else list(newest.values())

    def wait_for_world(self, size: int, limit_s: float) -> None:
        """Until a world of `size` trains."""
        self.wait(lambda: len(self.present_world()) == size, limit_s, f"a world of {size} trains")
        self.wait_for_steps(10, limit_s)

    def wait_for_steps(self, count: int, limit_s: float) -> None:
        """Until `count` more steps are completed."""
        steps = self.steps()
        goal = steps[-1].number + count if steps else count
        self.wait(lambda: self.steps()[-1].number >= goal, limit_s, f"{count} more steps are completed")

    def wait(self, condition: Callable[[], object], limit_s: float, what: str) -> None:
        """Until the condition holds. SystemFailed after `limit_s`, or when the job has ended."""
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                raise SystemFailed(f"after {limit_s:g} s not true: {what}")
            self.check_alive()
            time.sleep(POLL_S)  # the logs of other processes have no event to wait for

    def check_alive(self) -> None:
        """SystemFailed when a process has ended that should not."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise SystemFailed(f"{name} ended with status {process.returncode}: {self.last_words(name)}")

    def last_words(self, name: str) -> str:
        """The last line that a process said which looks like an error, or else its last line."""
        path = self.base / f"{name}.out"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        lines = [line.strip() for line in lines if line.strip()]
        errors = [line for line in lines if "Error" in line or "error" in line]
        return (errors or lines or ["(nothing)"])[-1][:200]

    def environ(self) -> dict[str, str]:
        """The environment of every process: one thread for each worker's computation, as torchrun sets it anyway."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOROVOD_", "EDL_", "TORCH"))}
        paths = f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"
        bin_dir = str(Path(sys.executable).parent)
        return {
            **kept,
            TAG: self.tag,
            "PYTHONPATH": paths,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{bin_dir}{os.pathsep}{kept.get('PATH', '')}",
        }

    def job_command(self, *more: str) -> list[str]:
        """The program of the job with its options."""
        options = ["--log_dir", str(self.log_dir), "--step_s", str(self.job.step_s)]
        options += ["--frozen_mb", str(self.job.frozen_mb), "--save_every", str(self.job.save_every)]
        options += ["--checkpoint_dir", str(self.base / "checkpoint"), "--max_np", str(self.max_np)]
        return [str(JOBS / self.program), *options, *more]

    def spawn(self, name: str, command: list[str], **environ: str) -> None:
        """Start a process of the system in a session of its own; its output goes to <base>/<name>.out."""
        with (self.base / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                command,
                env={**self.environ(), **environ},
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def reap(self, name: str, signum: int, limit_s: float = 20.0) -> None:
        """End one of our processes with a signal; SIGKILL when that does not end it."""
        process = self.processes.pop(name)
        process.send_signal(signum)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def ours(self) -> list[psutil.Process]:
        """Every process that carries the tag."""
        return processes_with(TAG, lambda tag: tag == self.tag)

    def close(self) -> None:
        """End every process of the system, frozen ones included."""
        left = self.ours()
        while left:
            for process in left:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(left, timeout=5)
            left = self.ours()
        for child in self.processes.values():
            child.wait()
        self.processes.clear()


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
