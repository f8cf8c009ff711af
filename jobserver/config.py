"""The JobServer's configuration: defaults < TOML file < environment < command line, validated once.

Returns a frozen Config or raises ConfigError with one sentence that names the option; nothing after it reads the
environment. The options of the predecessor's start script become a Changing rule, in workers.
"""

import math
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edl_collective.coord.access import is_loopback
from edl_collective.coord.job_spec import ChangeRule
from edl_collective.coord.key_file import KEY_FILE_VARIABLE, key_file
from edl_collective.coord.paths import Paths, check_name
from jobclient.config import machine_slots
from jobclient.options import (
    ConfigError,
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
from jobserver.changing import Changing

DEFAULT_PORT = 8180
_POSITIVE = (
    "zookeeper_wait_s",
    "session_timeout_s",
    "finish_timeout_s",
    "save_timeout_s",
    "absence_timeout_s",
    "patience_s",
)
#: how the predecessor spelled its options; any of these asks for a changing script
_CHANGING_OPTIONS = ("time_interval_to_change", "add_pods_one_step", "del_pods_one_step")


@dataclass(frozen=True, slots=True)
class Config:
    """One JobServer's settings."""

    zookeeper: str = "127.0.0.1:2181"
    #: `zookeeper` was named by somebody, not made up as a default
    zookeeper_given: bool = False
    zookeeper_root: str = "/edl"
    zookeeper_wait_s: float = 30.0
    session_timeout_s: float = 10.0
    host: str = "127.0.0.1"
    server_port: int = DEFAULT_PORT
    key_file: Path = Path("~/.edl/key")
    #: the key file was named by somebody, not made up as a default
    key_file_given: bool = False
    #: refuse a tree in ZooKeeper that everybody may change
    closed_tree: bool = False
    #: of the HTTP interface
    tls: bool = False
    #: PEM; None: one that proves the cluster key
    tls_cert: Path | None = None
    tls_key: Path | None = None
    server_name: str = "server"
    finish_timeout_s: float = 120.0
    save_timeout_s: float = 3600.0
    absence_timeout_s: float = 10.0
    pack: bool = True
    load_ceiling: float = 1.0
    patience_s: float = 600.0
    log_level: int = 20
    changing: Changing | None = None

    def __post_init__(self) -> None:
        checked("--zookeeper-root", Paths, self.zookeeper_root)
        checked("--server-name", check_name, "server", self.server_name)
        check_hosts(self.zookeeper)
        check_positive(self, _POSITIVE)
        if not 0 < self.load_ceiling <= 1:
            raise ConfigError(f"--load-ceiling is {self.load_ceiling:g}: it must be above 0 and at most 1")
        check_port("--server-port", self.server_port)
        if self.tls_key is not None and self.tls_cert is None:
            raise ConfigError("--tls-key is given without --tls-cert, whose key it is")
        if not is_loopback(self.host) and not self.key_file_given:
            raise ConfigError(
                f"--host {self.host} lets other machines in, which needs a key of its own: "
                f"name the cluster's key file with --key-file or {KEY_FILE_VARIABLE}"
            )


OPTIONS: dict[str, tuple[str, str]] = {
    "zookeeper": ("HOSTS", "host:port[,host:port] (default: 127.0.0.1:2181)"),
    "zookeeper_root": ("PATH", "where EDL lives in ZooKeeper (default: /edl)"),
    "zookeeper_wait": ("SECONDS", "how long to wait for ZooKeeper at start (default: 30)"),
    "session_timeout": (
        "SECONDS",
        "silence after which another JobServer may lead; at most that of the JobClients (default: 10)",
    ),
    "zookeeper_acl": (
        "key|open",
        "who may read and change EDL's tree in ZooKeeper: who holds the cluster key, or everybody "
        "(default: key, but for a new tree open when ZooKeeper and --host are on the loopback)",
    ),
    "host": ("HOST", "address to listen on (default: 127.0.0.1; others need --key-file)"),
    "server_port": ("PORT", f"port of the HTTP interface, 0: any free one (default: {DEFAULT_PORT})"),
    "key_file": ("FILE", "the cluster key (default: $EDL_KEY_FILE or ~/.edl/key, created if missing)"),
    "tls": ("on|off", "TLS on that port (default: on, but off when --host is on the loopback)"),
    "tls_cert": (
        "FILE",
        "its certificate, PEM (default: one that proves the cluster key, which clients with the key verify)",
    ),
    "tls_key": ("FILE", "the key of --tls-cert, PEM (default: it is in the same file)"),
    "server_name": ("NAME", "name of this JobServer (default: the host name)"),
    "finish_timeout": ("SECONDS", "after rank 0 finished, how long the other workers may take (default: 120)"),
    "save_timeout": ("SECONDS", "after another worker finished, how long rank 0 may save (default: 3600)"),
    "absence_timeout": (
        "SECONDS",
        "after ZooKeeper was away, or this JobServer started, how long nodes may take to be back; "
        "not below the session time-out of the JobClients (default: 10)",
    ),
    "placement": ("pack|spread", "fill a node before the next one, or spread workers (default: pack)"),
    "load_ceiling": ("PART", "of all slots, up to which jobs get more than their --min-np (default: 1)"),
    "patience": (
        "SECONDS",
        "after a job has waited for so long, no later job of its priority begins before it (default: 600)",
    ),
    "log_level": ("N", "10 debug, 20 info, 30 warnings, 40 errors (default: 20)"),
    "node_ips": ("LIST", "nodes of the changing script, separated by commas (default: 127.0.0.1)"),
    "pod_num_of_node": ("N", "pods on each of these nodes (default: 1)"),
    "gpu_num_of_node": (
        "N",
        "GPUs, that is slots, on each of these nodes (default: those of this one, or its CPU cores)",
    ),
    "time_interval_to_change": ("SECONDS", "every so often pods leave, or join (default: 900)"),
    "add_pods_one_step": ("N", "pods that join at a time (default: 1)"),
    "del_pods_one_step": ("N", "pods that leave at a time (default: 1)"),
}
_DESCRIPTION = "Decide which slots each job has, and serve the HTTP interface. Runs no training itself."
_EPILOG = """\
Every option can also be set in the environment (EDL_ and the name in capitals, for example EDL_ZOOKEEPER) or in a
TOML file given with --config (server_port = 8180). The command line wins over the environment, which wins over the
file. '-' and '_' in option names are the same. The changing script (--changing, or any of
--time_interval_to_change, --add_pods_one_step, --del_pods_one_step) applies to jobs that say neither np nor schedule.
"""


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """The configuration for this command line. Raises ConfigError; unknown options end the process as argparse does."""
    parser = option_parser("jobserver", _DESCRIPTION, _EPILOG, OPTIONS)
    parser.add_argument("--changing", action="store_true", default=None, help="use the changing script")
    given = vars(parser.parse_args(list(map(with_dashes, argv))))
    values = merged([*OPTIONS, "changing"], given, environ)
    return _build(values, environ)


def _build(values: Mapping[str, object], environ: Mapping[str, str]) -> Config:
    given_key = values.get("key_file")
    placement = str(values.get("placement", "pack"))
    if placement not in ("pack", "spread"):
        raise ConfigError(f"--placement is {placement!r}: it must be pack or spread")
    return Config(
        zookeeper=str(values.get("zookeeper", "127.0.0.1:2181")),
        zookeeper_given="zookeeper" in values,
        zookeeper_root=str(values.get("zookeeper_root", "/edl")),
        zookeeper_wait_s=number(values, "zookeeper_wait", 30.0),
        session_timeout_s=number(values, "session_timeout", 10.0),
        host=str(values.get("host", "127.0.0.1")),
        server_port=integer(values, "server_port", DEFAULT_PORT),
        key_file=key_file(None if given_key is None else str(given_key), environ),
        key_file_given=given_key is not None,
        closed_tree=closed_tree(values, str(values.get("host", "127.0.0.1"))),
        tls=with_tls({"tls": "on", **values} if "tls_cert" in values else values, str(values.get("host", "127.0.0.1"))),
        tls_cert=_path(values, "tls_cert"),
        tls_key=_path(values, "tls_key"),
        server_name=str(values.get("server_name") or socket.gethostname()),
        finish_timeout_s=number(values, "finish_timeout", 120.0),
        save_timeout_s=number(values, "save_timeout", 3600.0),
        absence_timeout_s=number(values, "absence_timeout", 10.0),
        pack=placement == "pack",
        load_ceiling=number(values, "load_ceiling", 1.0),
        patience_s=number(values, "patience", 600.0),
        log_level=integer(values, "log_level", 20),
        changing=_changing(values, environ),
    )


def _path(values: Mapping[str, object], name: str) -> Path | None:
    return Path(str(values[name])).expanduser().absolute() if name in values else None


def _changing(values: Mapping[str, object], environ: Mapping[str, str]) -> Changing | None:
    """The rule in workers: a pod of the start script has gpu_num_of_node / pod_num_of_node of them."""
    nodes = [ip for ip in re.split(r"[,\s]+", str(values.get("node_ips", "127.0.0.1"))) if ip]
    pods = integer(values, "pod_num_of_node", 1)
    gpus = integer(values, "gpu_num_of_node", machine_slots(environ))
    every_s = number(values, "time_interval_to_change", 900.0)
    add, remove = integer(values, "add_pods_one_step", 1), integer(values, "del_pods_one_step", 1)
    if not nodes:
        raise ConfigError("--node_ips is empty: give one address per node")
    if pods < 1 or gpus < 1 or gpus % pods:
        raise ConfigError(f"--gpu_num_of_node {gpus} must be a multiple of --pod_num_of_node {pods}, both at least 1")
    if not 0 < every_s < math.inf:
        raise ConfigError(f"--time_interval_to_change is {every_s:g}: it must be a positive number of seconds")
    if add < 0 or remove < 0:
        raise ConfigError("--add_pods_one_step and --del_pods_one_step must be at least 0")
    asked = str(values.get("changing", "")).lower() in ("true", "1", "yes")
    if not asked and not any(name in values for name in _CHANGING_OPTIONS):
        return None
    workers = gpus // pods
    return Changing(ChangeRule(every_s, add * workers, remove * workers), len(nodes) * gpus)


def from_process(argv: Sequence[str]) -> Config:
    """`parse` with the environment of this process."""
    return parse(argv, os.environ)
