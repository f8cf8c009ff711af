"""The commands that a JobClient runs: a worker with its package hook, and a driver."""

import os
import sys
from pathlib import Path

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.records import JobSpec, NodeRecord, PlannedWorker
from jobclient.config import Config
from jobclient.node_api import log_path
from jobclient.processes import Command
from jobclient.worker import Launch
from jobclient.worker_env import (
    NodeEnvironment,
    hook_command,
    inherited,
    job_environment,
    worker_directory,
    worker_environment,
)

#: name of the driver's log among those of the workers
DRIVER_LOG = "driver"


class Launcher:
    """Builds commands from a node's configuration; starts nothing."""

    def __init__(self, config: Config, node: NodeRecord, key: ClusterKey, agent_socket: str) -> None:
        self._config = config
        self._node = node
        self._key = key
        self._shared = NodeEnvironment(
            base=config.environ,
            python_dir=str(Path(sys.executable).parent),
            agent_socket=agent_socket,
            interface=config.interface,
            threads_per_slot=config.threads_per_slot,
            zookeeper=config.zookeeper,
            zookeeper_root=config.zookeeper_root,
            services_token=key.services_token,
            user={} if config.run_as is None else config.run_as.environment,
        )

    def worker(self, spec: JobSpec, planned: PlannedWorker, held_dir: Path | None) -> Launch:
        token = self._key.worker_token(spec.job, planned.worker)
        job_dir = self._config.work_dir / spec.work_dir
        log = log_path(self._config.log_dir, spec.job, planned.worker)
        main = Command(
            argv=spec.command,
            env=worker_environment(
                *(self._shared, self._node, planned, spec, token), held_dir=None if held_dir is None else str(held_dir)
            ),
            cwd=job_dir / worker_directory(spec, planned.worker),
            log=log,
            run_as=self._config.run_as,
            make_cwd=spec.pod_path is not None,  # where a hook did not
        )
        return Launch(hook=self._hook(spec, planned.worker, job_dir, log), main=main)

    def _hook(self, spec: JobSpec, worker: str, job_dir: Path, log: Path) -> Command | None:
        hook = hook_command(spec, worker)
        if hook is None:
            return None
        environ = job_environment(self._shared, spec)
        return Command(_runnable(hook, job_dir), environ, job_dir, log, run_as=self._config.run_as)

    def driver(self, job: str) -> Command:
        """It runs no code of users and needs the key: it runs as the JobClient does."""
        config = self._config
        options = {
            "--job": job,
            "--node": self._node.node,
            "--host": config.address,
            "--zookeeper": config.zookeeper,
            "--root": config.zookeeper_root,
            "--session-timeout": f"{config.session_timeout_s:g}",
            "--key-file": str(config.key_file),
        }
        return Command(
            argv=[sys.executable, "-m", "edl_collective.driver", *(word for pair in options.items() for word in pair)],
            env={**inherited(config.environ), "PYTHONUNBUFFERED": "1"},
            cwd=config.start_dir,
            log=log_path(config.log_dir, job, DRIVER_LOG),
        )


def _runnable(hook: tuple[str, ...], job_dir: Path) -> tuple[str, ...]:
    """A hook that is a readable file without the executable bit is a shell script."""
    path = job_dir / hook[0]
    return ("sh", *hook) if path.is_file() and not os.access(path, os.X_OK) else hook
