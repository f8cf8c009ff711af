"""torchrun elastic: an agent with one worker for each slot, c10d rendezvous in the first agent.

torchrun ends all workers and starts new ones on every change. A killed worker is started again by its own agent, so a
kill leaves the world as large as it was.
"""

import os
import signal
import sys
from pathlib import Path

import psutil

from bench.systems.base import JobOptions, System, free_port

#: seconds; see docs/bench.md for why these and what the defaults are
RDZV_CONF = {"last_call_timeout": 1, "keep_alive_interval": 2, "keep_alive_max_attempt": 3}
MONITOR_INTERVAL_S = 0.1


class Torchrun(System):
    """Agents a0, a1, ... of which a0 hosts the rendezvous."""

    name = "torchrun"
    program = "torchrun_job.py"
    config = (
        "one agent per worker, --nnodes 1:N --rdzv-backend c10d --monitor-interval 0.1 --max-restarts 1000, "
        f"rdzv-conf {RDZV_CONF}, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, gloo; checkpoint "
        "every 20 steps to the local disk"
    )

    def __init__(self, base: Path, max_np: int, job: JobOptions) -> None:
        super().__init__(base, max_np, job)
        self._port = free_port()
        self._started = 0

    def start(self, size: int) -> None:
        for _ in range(size):
            self._add_agent()

    def resize(self, size: int) -> None:
        while len(self.processes) < size:
            self._add_agent()
        while len(self.processes) > size:
            self.reap(list(self.processes)[-1], signal.SIGTERM)

    def kill_coordinator(self) -> None:
        """The agent that hosts the rendezvous, as when its node fails: its worker goes with it."""
        agent = psutil.Process(self.processes["a0"].pid)
        workers = agent.children(recursive=True)
        self.reap("a0", signal.SIGKILL)
        for worker in workers:
            if worker.is_running():
                worker.kill()

    def kill_driver(self) -> None:
        """What forms the worlds is the rendezvous, which the first agent hosts."""
        self.kill_coordinator()

    def lose_node(self) -> None:
        """Freeze the agents of the last half and all that they started: nothing is closed, nothing answers."""
        names = list(self.processes)
        for name in names[len(names) // 2 :]:
            agent = psutil.Process(self.processes.pop(name).pid)
            for process in [agent, *agent.children(recursive=True)]:
                os.kill(process.pid, signal.SIGSTOP)

    def _add_agent(self) -> None:
        name, first = f"a{self._started}", self._started == 0
        self._started += 1
        conf = ",".join(f"{key}={value}" for key, value in RDZV_CONF.items())
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", f"1:{self.max_np}", "--nproc-per-node=1"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{self._port}", "--rdzv-id=bench"]
        command += ["--rdzv-conf", f"{conf},is_host={'true' if first else 'false'}"]
        command += ["--max-restarts=1000", f"--monitor-interval={MONITOR_INTERVAL_S}", "--local-addr=127.0.0.1"]
        self.spawn(
            name, [*command, *self.job_command()], TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", GLOO_SOCKET_IFNAME="lo"
        )
