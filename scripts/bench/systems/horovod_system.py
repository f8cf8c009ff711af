"""Stock horovodrun elastic with a discovery script.

Every worker has a "host" of its own, since Horovod gives up a whole host for one failed worker: the hosts are ways to
write 127.0.0.1, all of which horovodrun takes for this machine. A host that lost a worker stays on its blacklist, so
another one takes its place.
"""

import os
import signal
import sys
from pathlib import Path

import psutil

from bench.systems.base import JobOptions, System

#: other spellings of 127.0.0.1 that gethostbyname understands
_ALIASES = ["localhost", "127.0.0.1", "127.0.1", "127.1", "0x7f.1", "0x7f.0.1", "0x7f.0.0.1", "0177.1", "0177.0.1"]
_ALIASES += ["0177.0.0.1", "127.0.0.01", "127.0.01", "127.01", "127.0x1", "127.0.0x1", "127.0.0.0x1"]

DISCOVERY_SCRIPT = "#!/bin/sh\ncat {hosts}\n"


class Horovod(System):
    """One horovodrun, which is coordinator and driver in one."""

    name = "horovod"
    program = "horovod_job.py"
    config = (
        "horovodrun --network-interfaces lo --min-np 1 --max-np 8 --host-discovery-script (a file), one worker per "
        "host, defaults otherwise; TorchState, commit every 20 steps, check_host_updates at every other"
    )

    def __init__(self, base: Path, max_np: int, job: JobOptions) -> None:
        super().__init__(base, max_np, job)
        self._hosts = list(_ALIASES)
        self._file = base / "hosts.txt"
        self._listed: list[str] = []

    def start(self, size: int) -> None:
        self._list(size)
        script = self.base / "discover.sh"
        script.write_text(DISCOVERY_SCRIPT.format(hosts=self._file))
        script.chmod(0o700)
        command = ["horovodrun", "-np", str(size), "--min-np", "1", "--max-np", str(self.max_np)]
        command += ["--network-interfaces", "lo", "--host-discovery-script", str(script)]
        self.spawn("horovodrun", [*command, sys.executable, *self.job_command()])

    def resize(self, size: int) -> None:
        self._list(size)

    def kill_worker(self) -> None:
        victim = max(self.present_world(), key=lambda step: step.rank).pid
        host = psutil.Process(victim).environ()["HOROVOD_HOSTNAME"]
        os.kill(victim, signal.SIGKILL)
        # The file goes on listing the host: it is the driver that has to find out. The next resize uses another one.
        self._hosts.remove(host)

    def kill_coordinator(self) -> None:
        self.reap("horovodrun", signal.SIGKILL)

    def kill_driver(self) -> None:
        """The same process."""
        self.kill_coordinator()

    def lose_node(self) -> None:
        """Freeze the workers of the last half of the hosts. On one machine nothing else belongs to a host."""
        world = sorted(self.present_world(), key=lambda step: step.rank)
        for step in world[len(world) // 2 :]:
            worker = psutil.Process(step.pid)
            for process in [worker, *worker.children(recursive=True)]:
                process.send_signal(signal.SIGSTOP)

    def _list(self, size: int) -> None:
        self._listed = self._hosts[:size]
        new = self._file.with_suffix(".new")
        new.write_text("".join(f"{host}:1\n" for host in self._listed))
        new.replace(self._file)
