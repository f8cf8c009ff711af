"""The JobClient's configuration: defaults < config file < environment < command line, validated once.

Reads the environment, the config file and what the machine has (devices, cores, interfaces) and returns a frozen
Config; nothing after it looks at any of these again. Raises ConfigError with one sentence that names the option.
"""

import argparse
import math
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edl_collective.coord.access import ACL_MODES, is_loopback, off_loopback
from edl_collective.coord.key_file import key_file
from edl_collective.coord.paths import Paths, check_name
from edl_collective.coord.records import JobSpec
from jobclient import gpus as gpu_discovery
from jobclient.addresses import interface_of

#: upper bound of workers that a job started by a JobClient allows; the JobServer's options bound it further
DEFAULT_MAX_NP = 1024
R = TypeVar("R")

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


class ConfigError(ValueError):
    """Raised when an option has a value that cannot work."""


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
        _checked("--node", check_name, "node", self.node)
        _checked("--zookeeper-root", Paths, self.zookeeper_root)
        if not re.fullmatch(r"[^\s,:]+:\d+(,[^\s,:]+:\d+)*", self.zookeeper):
            raise ConfigError(f"--zookeeper is {self.zookeeper!r}: give host:port, several separated by commas")
        for name in ("zookeeper_wait_s", "session_timeout_s", "slots", "threads_per_slot", "health_timeout_s"):
            if getattr(self, name) <= 0:
                option = "--" + name.removesuffix("_s").replace("_", "-")
                raise ConfigError(f"{option} is {getattr(self, name)}: it must be positive")
        if self.drain_timeout_s is not None and not 0 <= self.drain_timeout_s < math.inf:
            raise ConfigError(f"--drain-timeout is {self.drain_timeout_s}: it must be a number of seconds, at least 0")
        for name in ("log_keep_days", "log_max_bytes"):
            if not 0 <= getattr(self, name) < math.inf:
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"{option} is {getattr(self, name)}: it must be a number, 0 for no limit")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port is {self.port}: it must be between 0 (any free port) and 65535")
        if self.gpus and len(self.gpus) != self.slots:
            raise ConfigError(f"--gpus names {len(self.gpus)} devices for --slots {self.slots}: give one per slot")
        if not self.work_dir.is_dir():
            raise ConfigError(f"--work-dir {self.work_dir} is not a directory")


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """The configuration for this command line and environment.

    Raises ConfigError; --help and options that do not exist end the process as argparse does.
    """
    split = count_options(argv)
    given = vars(_parser().parse_args([*map(_dashes, argv[:split]), *argv[split:]]))
    values = {**_from_file(given["config"] or environ.get("EDL_CONFIG")), **_from_environ(environ)}
    values |= {name: value for name, value in given.items() if value is not None}
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jobclient",
        description=_HELP,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of the options below")
    for name, (metavar, text) in OPTIONS.items():
        parser.add_argument("--" + name.replace("_", "-"), dest=name, metavar=metavar, help=text)
    parser.add_argument("--label", metavar="K=V", action="append", help="one label; may be given several times")
    parser.add_argument("script", nargs="?", help="training script: make sure that a job which runs it exists")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    return parser


def count_options(argv: Sequence[str]) -> int:
    """Where the script stands in `argv`: what follows it is not ours to read."""
    index = 0
    while index < len(argv) and argv[index].startswith("-") and argv[index] != "--":
        alone = "=" in argv[index] or argv[index] in ("-h", "--help")
        index += 1 if alone else 2
    return min(index, len(argv))


def _dashes(argument: str) -> str:
    """--log_dir is --log-dir."""
    name, equals, value = argument.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name) + equals + value


def _from_file(path: str | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        values = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {path} cannot be read: {error}") from error
    values = {name.replace("-", "_"): value for name, value in values.items()}
    unknown = sorted(values.keys() - OPTIONS.keys())
    if unknown:
        raise ConfigError(f"--config {path} sets {unknown[0]!r}, which is not an option; see --help")
    return values


def _from_environ(environ: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {name: environ[alias] for alias, name in _ALIASES.items() if environ.get(alias)}
    values |= {name: environ[f"EDL_{name.upper()}"] for name in OPTIONS if environ.get(f"EDL_{name.upper()}")}
    return values


def _build(values: Mapping[str, object], environ: Mapping[str, str]) -> Config:
    def text(name: str, default: str) -> str:
        return str(values.get(name, default))

    def number(name: str, default: float) -> float:
        return _number(name, values.get(name, default))

    address = text("address", "127.0.0.1")
    found = gpu_discovery.find(environ)
    slots, gpus = _slots(values, found.devices)
    return Config(
        node=text("node", socket.gethostname()),
        zookeeper=text("zookeeper", "127.0.0.1:2181"),
        zookeeper_root=text("zookeeper_root", "/edl"),
        zookeeper_wait_s=number("zookeeper_wait", 30.0),
        session_timeout_s=number("session_timeout", 10.0),
        drain_timeout_s=number("drain_timeout", 0.0) if "drain_timeout" in values else None,
        address=address,
        port=_integer("port", values.get("port", 0)),
        interface=str(values["interface"]) if "interface" in values else interface_of(address),
        slots=slots,
        gpus=gpus,
        devices_text=f"{found.text}; {slots} {'GPU' if gpus else 'CPU'} slots",
        health_check=_switch("health_check", values.get("health_check", "on" if gpus else "off")),
        health_timeout_s=number("health_timeout", 120.0),
        threads_per_slot=_integer(
            "threads_per_slot", values.get("threads_per_slot", max(1, _cores() // max(1, slots)))
        ),
        labels=_labels(values["labels"]),
        log_dir=Path(text("log_dir", "pod_log")).absolute(),
        log_file=Path(text("log_file", "")).absolute() if values.get("log_file") else None,
        log_keep_days=number("log_keep_days", 30.0),
        log_max_bytes=_integer("log_max_bytes", values.get("log_max_bytes", 10 * 2**30)),
        work_dir=Path(text("work_dir", ".")).absolute(),
        start_dir=Path.cwd(),
        key_file=key_file(text("key_file", ""), environ),
        closed_tree=closed_tree(values, address),
        tls=with_tls(values, address),
        log_level=_integer("log_level", values.get("log_level", 20)),
        job=_job(values),
        environ=dict(environ),
    )


def closed_tree(values: Mapping[str, object], address: str) -> bool:
    """Whether --zookeeper-acl asks for a tree that is closed. Raises ConfigError."""
    mode = str(values.get("zookeeper_acl", ""))
    if mode and mode not in ACL_MODES:
        raise ConfigError(f"--zookeeper-acl is {mode!r}: it must be {' or '.join(ACL_MODES)}")
    zookeeper = str(values.get("zookeeper", "127.0.0.1:2181"))
    return mode == "key" or (not mode and off_loopback(zookeeper, address))


def with_tls(values: Mapping[str, object], address: str) -> bool:
    """Whether a port at `address` speaks TLS. Raises ConfigError."""
    mode = str(values.get("tls", "off" if is_loopback(address) else "on"))
    if mode not in ("on", "off"):
        raise ConfigError(f"--tls is {mode!r}: it must be on or off")
    return mode == "on"


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
    return _checked(
        "the job",
        JobSpec,
        job=name,
        command=("python3", str(script), *args),
        min_np=_integer("min_np", values.get("min_np", 1)),
        max_np=_integer("max_np", values.get("max_np", DEFAULT_MAX_NP)),
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
    slots = _integer("slots", values["slots"])
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
    return tuple(_integer("gpus", word) for word in words)


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


def _number(name: str, value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise ConfigError(f"--{name.replace('_', '-')} is {value!r}: it must be a number") from None


def _integer(name: str, value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ConfigError(f"--{name.replace('_', '-')} is {value!r}: it must be a whole number") from None


def _checked(option: str, make: Callable[..., R], *args: object, **fields: object) -> R:
    """make(...), its ValueError as a ConfigError that names `option`."""
    try:
        return make(*args, **fields)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error
