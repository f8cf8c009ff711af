"""Before a node is registered: does the device of each slot work? Those that do not are not offered.

Each device is tried by a process of its own (jobclient.health_probe), all at once, within a time limit; they end with
the JobClient. The CPU is one device for all CPU slots. A device that cannot be tried, because torch is missing or has
no CUDA, is offered and a warning says so.
"""

import asyncio
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec.structs import replace

from edl_collective.coord.records import UNHEALTHY_LABEL, NodeRecord
from jobclient.config import Config
from jobclient.health_probe import NOT_CHECKED
from jobclient.options import ConfigError
from jobclient.processes import Command, Process, exit_text, log_tail
from jobclient.worker_env import inherited

logger = logging.getLogger(__name__)

#: the devices to try: those of the slots, or None for the CPU
Device = int | None


async def healthy(node: NodeRecord, config: Config) -> NodeRecord:
    """`node` without the slots whose device fails. Raises ConfigError if none is left."""
    if not config.health_check:
        return node
    devices: list[Device] = list(dict.fromkeys(node.gpus)) or [None]
    with tempfile.TemporaryDirectory(prefix="edl-health-") as folder:
        problems = await problems_of(devices, lambda device: _command(device, config, Path(folder)), config)
    for device, problem in problems.items():
        logger.error("%s failed its health check and is not offered: %s", device_name(device), problem)
    return without(node, problems)


def without(node: NodeRecord, problems: Mapping[Device, str]) -> NodeRecord:
    """`node` without the slots of the devices that have a problem, which its label names. Raises ConfigError."""
    if not problems:
        return node
    text = "; ".join(f"{device_name(device)}: {problem}" for device, problem in problems.items())
    gpus = tuple(gpu for gpu in node.gpus if gpu not in problems)
    if not gpus:
        raise ConfigError(f"no slot passed the health check ({text}): see to it, or give --health-check off")
    return replace(node, gpus=gpus, slots=len(gpus), labels={**node.labels, UNHEALTHY_LABEL: text})


async def problems_of(devices: list[Device], command: Callable[[Device], Command], config: Config) -> dict[Device, str]:
    """What is wrong with which of `devices`."""
    limit_s = config.health_timeout_s
    logger.info("health check of %s (at most %g s)", ", ".join(map(device_name, devices)), limit_s)
    async with asyncio.TaskGroup() as probes:  # cancelled, it waits until each has killed its own
        tasks = {device: probes.create_task(_problem(device, command(device), limit_s)) for device in devices}
    return {device: problem for device, task in tasks.items() if (problem := task.result()) is not None}


def device_name(device: Device) -> str:
    return "the CPU" if device is None else f"GPU {device}"


def _command(device: Device, config: Config, folder: Path) -> Command:
    environ = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **inherited(config.environ)}
    environ["CUDA_VISIBLE_DEVICES"] = "" if device is None else str(device)
    if config.interface is not None:  # else gloo looks for the address of the host name
        environ["GLOO_SOCKET_IFNAME"] = environ["NCCL_SOCKET_IFNAME"] = config.interface
    kind = "cpu" if device is None else "cuda"
    argv = [sys.executable, "-m", "jobclient.health_probe", kind]
    log = folder / f"{kind}-{device}.log"
    if config.run_as is None:
        return Command(argv, environ, config.start_dir, log)
    # as the workers run, who may have other rights to the device than root has
    return Command(argv, environ | config.run_as.environment, Path("/"), log, run_as=config.run_as)


async def _problem(device: Device, command: Command, timeout_s: float) -> str | None:
    """Try one device; cancelled or late, it is killed."""
    process = Process(command, lambda _: None)
    try:
        async with asyncio.timeout(timeout_s):
            code = await asyncio.shield(process.exited)
    except TimeoutError:
        return f"no answer within {timeout_s:g} s (--health-timeout)"
    finally:
        process.kill()
        await asyncio.shield(process.gone)
    said = process.problem or log_tail(command.log, lines=1, size_bytes=300)
    if code == NOT_CHECKED:
        logger.warning("%s is offered without a health check: %s", device_name(device), said)
        return None
    return None if code == 0 else said or exit_text(code)
