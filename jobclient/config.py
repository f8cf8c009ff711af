"""The JobClient's configuration: defaults < config file < environment < command line, validated once.

Reads the environment, the config file and what the machine has (devices, cores, interfaces) and returns a frozen
Config; nothing after it looks at any of these again. Raises ConfigError with one sentence that names the option.
"""

import argparse
import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edl_collective.coord.key_file import key_file
from edl_collective.coord.paths import Paths, check_name
from edl_collective.coord.records import MAX_SLOTS, JobSpec
from jobclient import gpus as gpu_discovery
from jobclient import run_as
from jobclient.addresses import interface_of
from jobclient.options import (
    ConfigError,
    as_integer,
    check_hosts,
    check_port,
    check_positive,
    checked,
    closed_tree,
    integer,
    merged,
    number,
    option_parser,
    with_dashes,
    with_tls,
)

#: upper bound of workers that a job started by a JobClient allows; the JobServer's options bound it further
DEFAULT_MAX_NP = 1024

_HELP = """\
Run this on every machine that offers slots. It registers the machine as a node, then starts, watches and stops the
workers that the JobServer plans for it.

  python -m jobclient                                   offer this machine to all jobs
  python -m jobclient --package_sh ./package.sh --pod_path ./resnet50_pod train.py --epochs 90
                                                        the same, and make sure that this job exists
"""
_EPILOG = """\
Every option can also be set in the environment (EDL_ and the name in capitals, for example EDL_ZOOKEEPER,
EDL_LOG_DIR) or in a TOML file given with --config (log_dir = "pod_log"). The command line wins over the environment,
which wins over the file. '-' and '_' in option names are the same."""


@dataclass(frozen=True, slots=True)
class Config:
    """One JobClient's settings; `job` is the job that it makes sure of, if a script was given."""

    node: str
    zookeeper: str
    zookeeper_root: str
    zookeeper_wait_s: float
    session_timeout_s: float
    #: after SIGTERM: by when all workers must have left at a step boundary; None: each job's leave_timeout_s
    drain_timeout_s: float | None
    address: str
    port: int
    #: network interface that holds `address`; None when that is not known
    interface: str | None
    slots: int
    #: CUDA device of each slot; empty: CPU slots
    gpus: tuple[int, ...]
    #: what was found on the machine and what of it is offered, for the log
    devices_text: str
    #: try the device of each slot before this node is registered
    health_check: bool
    health_timeout_s: float
    threads_per_slot: int
    labels: Mapping[str, str]
    log_dir: Path
    #: the JobClient's own log; None: standard error
    log_file: Path | None
    #: how long, and up to how many bytes together, logs of ended workers stay; 0: without a limit
    log_keep_days: float
    log_max_bytes: int
    work_dir: Path
    #: who workers, package hooks and health probes run as; None: as the JobClient does
    run_as: run_as.RunAs | None
    key_file: Path
    #: refuse a tree in ZooKeeper that everybody may change
    closed_tree: bool
    #: of the HTTP endpoint
    tls: bool
    #: where the JobClient was started, and where drivers run; it may be gone by then
    start_dir: Path
    log_level: int
    job: JobSpec | None
    #: what children may inherit from; jobclient.worker_env picks
    environ: Mapping[str, str] = field(repr=False)

    def __post_init__(self) -> None:
        checked("--node", check_name, "node", self.node)
        checked("--zookeeper-root", Paths, self.zookeeper_root)
        check_hosts(self.zookeeper)
        check_positive(self, ("zookeeper_wait_s", "session_timeout_s", "slots", "threads_per_slot", "health_timeout_s"))
        if self.slots > MAX_SLOTS:
            raise ConfigError(f"--slots is {self.slots}: a node has at most {MAX_SLOTS}")
        if self.drain_timeout_s is not None and not 0 <= self.drain_timeout_s < math.inf:
            raise ConfigError(f"--drain-timeout is {self.drain_timeout_s}: it must be a number of seconds, at least 0")
        for name in ("log_keep_days", "log_max_bytes"):
            if not 0 <= getattr(self, name) < math.inf:
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"{option} is {getattr(self, name)}: it must be a number, 0 for no limit")
        check_port("--port", self.port)
        if self.gpus and len(self.gpus) != self.slots:
            raise ConfigError(f"--gpus names {len(self.gpus)} devices for --slots {self.slots}: give one per slot")
        if not self.work_dir.is_dir():
            raise ConfigError(f"--work-dir {self.work_dir} is not a directory")


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """The configuration for this command line and environment.

    Raises ConfigError; --help and options that do not exist end the process as argparse does.
    """
    split = count_options(argv)
    parser = option_parser("jobclient", _HELP, _EPILOG, OPTIONS)
    parser.add_argument("--label", metavar="K=V", action="append", help="one label; may be given several times")
    parser.add_argument("script", nargs="?", help="training script: make sure that a job which runs it exists")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    given = vars(parser.parse_args([*map(with_dashes, argv[:split]), *argv[split:]]))
    values = merged(OPTIONS, given, environ, _ALIASES)
    values["labels"] = _labels(values.get("labels", "")) | _labels(",".join(given["label"] or ()), "--label")
    return _build(values, environ)


OPTIONS: dict[str, tuple[str, str]] = {
    "node": ("NAME", "name of this node (default: the host name)"),
    "zookeeper": ("HOSTS", "host:port[,host:port] (default: 127.0.0.1:2181)"),
    "zookeeper_root": ("PATH", "where EDL lives in ZooKeeper (default: /edl)"),
    "zookeeper_wait": ("SECONDS", "how long to wait for ZooKeeper at start (default: 30)"),
    "session_timeout": (
        "SECONDS",
        "silence after which the cluster takes this node for dead; at least that of the JobServers (default: 10)",
    ),
    "zookeeper_acl": (
        "key|open",
        "who may read and change EDL's tree in ZooKeeper: who holds the cluster key, or everybody "
        "(default: key, but for a new tree open when ZooKeeper and --address are on the loopback)",
    ),
    "drain_timeout": (
        "SECONDS",
        "after SIGTERM, when those that have not left are stopped by the ladder (default: the job's leave_timeout_s)",
    ),
    "address": ("HOST", "how other nodes reach this one (default: 127.0.0.1)"),
    "port": ("PORT", "HTTP port for logs (default: 0, any free one)"),
    "tls": ("on|off", "TLS on that port (default: on, but off when --address is on the loopback)"),
    "interface": ("NAME", "network interface for training traffic (default: the one that holds --address)"),
    "slots": ("N", "workers that fit on this node (default: its GPUs, else its CPU cores)"),
    "gpus": (
        "auto|none|LIST",
        "CUDA device of each slot, for example 0,1,2,3; none: CPU slots (default: auto, all visible ones)",
    ),
    "health_check": (
        "on|off",
        "try each slot's device before the node registers, and leave out those that fail (default: on for GPUs, off "
        "for CPU slots, so that these start at once)",
    ),
    "health_timeout": ("SECONDS", "how long that may take, with the import of torch (default: 120)"),
    "threads_per_slot": ("N", "CPU threads for each worker (default: cores / slots)"),
    "labels": ("K=V,...", "labels of this node"),
    "log_dir": ("DIR", "one log per worker: DIR/<job>/<worker>.log (default: ./pod_log)"),
    "log_file": ("FILE", "the JobClient's own log, rotated, four old ones stay (default: standard error)"),
    "log_keep_days": ("DAYS", "how long logs of ended workers stay, 0: for ever (default: 30)"),
    "log_max_bytes": (
        "BYTES",
        "logs of ended workers together; the oldest go first, 0: no limit (default: 10 GiB). Logs of running workers "
        "are neither removed nor rotated",
    ),
    "work_dir": ("DIR", "directory that relative paths of jobs start from (default: the current one)"),
    "run_as": (
        "USER[:GROUP]",
        "run workers as this user; the JobClient must be root, and its key stays its own (default: as the JobClient)",
    ),
    "key_file": ("FILE", "the cluster key (default: $EDL_KEY_FILE or ~/.edl/key, created if missing)"),
    "log_level": ("N", "10 debug, 20 info, 30 warnings, 40 errors (default: 20)"),
    "package_sh": ("FILE", "run as FILE -pod_id WORKER before each worker of the job"),
    "pod_path": ("DIR", "each worker of the job runs in DIR/<worker>"),
    "job_id": ("NAME", "name of the job (default: the name of --pod_path, else of the script)"),
    "min_np": ("N", "fewest workers that the job may run with (default: 1)"),
    "max_np": ("N", f"most workers that the job may run with (default: {DEFAULT_MAX_NP})"),
    "checkpoint_path": ("URL", "where the job keeps its checkpoints (EDL_CHECKPOINT_PATH)"),
}
_ALIASES = {"PADDLE_EDL_FLEET_CHECKPOINT_PATH": "checkpoint_path", "PADDLE_JOB_ID": "job_id"}


def count_options(argv: Sequence[str]) -> int:
    """Where the script stands in `argv`: what follows it is not ours to read."""
    index = 0
    while index < len(argv) and argv[index].startswith("-") and argv[index] != "--":
        alone = "=" in argv[index] or argv[index] in ("-h", "--help")
        index += 1 if alone else 2
    return min(index, len(argv))


def _build(values: Mapping[str, object], environ: Mapping[str, str]) -> Config:
    def text(name: str, default: str) -> str:
        return str(values.get(name, default))

    address = text("address", "127.0.0.1")
    found = gpu_discovery.find(environ)
    slots, gpus = _slots(values, found.devices)
    return Config(
        node=text("node", socket.gethostname()),
        zookeeper=text("zookeeper", "127.0.0.1:2181"),
        zookeeper_root=text("zookeeper_root", "/edl"),
        zookeeper_wait_s=number(values, "zookeeper_wait", 30.0),
        session_timeout_s=number(values, "session_timeout", 10.0),
        drain_timeout_s=number(values, "drain_timeout", 0.0) if "drain_timeout" in values else None,
        address=address,
        port=integer(values, "port", 0),
        interface=str(values["interface"]) if "interface" in values else interface_of(address),
        slots=slots,
        gpus=gpus,
        devices_text=f"{found.text}; {slots} {'GPU' if gpus else 'CPU'} slots",
        health_check=_switch("health_check", values.get("health_check", "on" if gpus else "off")),
        health_timeout_s=number(values, "health_timeout", 120.0),
        threads_per_slot=integer(values, "threads_per_slot", max(1, _cores() // max(1, slots))),
        labels=_labels(values["labels"]),
        log_dir=Path(text("log_dir", "pod_log")).absolute(),
        log_file=Path(text("log_file", "")).absolute() if values.get("log_file") else None,
        log_keep_days=number(values, "log_keep_days", 30.0),
        log_max_bytes=integer(values, "log_max_bytes", 10 * 2**30),
        work_dir=Path(text("work_dir", ".")).absolute(),
        run_as=_run_as(text("run_as", "")),
        start_dir=Path.cwd(),
        key_file=key_file(text("key_file", ""), environ),
        closed_tree=closed_tree(values, address),
        tls=with_tls(values, address),
        log_level=integer(values, "log_level", 20),
        job=_job(values),
        environ=dict(environ),
    )


def _job(values: Mapping[str, object]) -> JobSpec | None:
    """The job of the script on the command line: relative paths stay relative, each node has its own --work-dir."""

    def optional(name: str) -> str | None:
        return str(values[name]) if name in values else None

    script, args = values.get("script"), values.get("args")
    if script is None:
        for name in ("package_sh", "pod_path", "job_id"):
            if name in values:
                raise ConfigError(f"--{name} is given without a script: add the script that the workers run")
        return None
    assert isinstance(args, list)
    name = optional("job_id") or Path(optional("pod_path") or Path(str(script)).stem).name
    return checked(
        "the job",
        JobSpec,
        job=name,
        command=("python3", str(script), *args),
        min_np=integer(values, "min_np", 1),
        max_np=integer(values, "max_np", DEFAULT_MAX_NP),
        package_hook=optional("package_sh"),
        pod_path=optional("pod_path"),
        checkpoint_url=optional("checkpoint_path"),
    )


def _slots(values: Mapping[str, object], found: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """How many slots, and the CUDA device of each; `found`: those of the machine."""
    given = values.get("gpus", "auto")
    auto = given == "auto"
    gpus = found if auto else _gpu_list(given)
    if "slots" not in values:
        return (len(gpus), gpus) if gpus else (_cores(), ())
    slots = integer(values, "slots", 0)
    if auto:
        gpus = found[:slots] if len(found) >= slots else ()
    return slots, gpus


def machine_slots(environ: Mapping[str, str]) -> int:
    """How many slots this machine has unless somebody says otherwise: its GPUs, else its CPU cores."""
    return len(gpu_discovery.find(environ).devices) or _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _gpu_list(given: object) -> tuple[int, ...]:
    words = given if isinstance(given, list) else [w for w in str(given).split(",") if w and w != "none"]
    return tuple(as_integer("gpus", word) for word in words)


def _switch(name: str, value: object) -> bool:
    if value not in ("on", "off", True, False):  # True and False: of a file
        raise ConfigError(f"--{name.replace('_', '-')} is {value!r}: it must be on or off")
    return value in ("on", True)


def _labels(given: object, option: str = "--labels") -> dict[str, str]:
    if isinstance(given, dict):
        return {str(name): str(value) for name, value in given.items()}
    pairs = [word.partition("=") for word in str(given).split(",") if word]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise ConfigError(f"{option} holds {name!r}: write name=value, several separated by commas")
    return {name: value for name, _, value in pairs}


def _run_as(text: str) -> run_as.RunAs | None:
    try:
        return run_as.find(text, os.geteuid())
    except ValueError as error:
        raise ConfigError(str(error)) from error
