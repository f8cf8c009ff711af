"""What an hdfs:// or webhdfs:// URL says: NameNodes, folder, user and options. [pure]

    hdfs://host:8020/dir                       one NameNode by its address
    hdfs://host1:8020,host2:8020/dir           the NameNodes of a cluster with high availability, by their addresses
    hdfs://nameservice/dir                     a name that HADOOP_CONF_DIR explains
    hdfs:///dir                                fs.defaultFS of HADOOP_CONF_DIR
    hdfs://user@host:8020/dir?driver=libhdfs&replication=2&block_size=256m&timeout=30

Invariant: an option that is not known is refused, so that a mistyped one is not silently without effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from checkpoints.errors import CheckpointUnsupported

DEFAULT_RPC_PORT = 8020
#: Our name for NameNodes that were given by their addresses.
NAME_SERVICE = "edl-namenodes"
OPTIONS = ("driver", "user", "replication", "block_size", "timeout")
SCHEMES = ("hdfs", "webhdfs")

N = TypeVar("N", int, float)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class Location:
    """A folder on HDFS.

    Attributes:
        hosts: NameNodes as `host` or `host:port`, none for the one of the configuration.
        path: the folder, without a slash at its end; empty is the root.
        driver: which driver to use, None for the one of the scheme.
        user: on whose behalf, None for HADOOP_USER_NAME, else the login name.
        replication: copies of each block, None for what the cluster's configuration says.
        block_size_bytes: bytes of an HDFS block, None for what the cluster's configuration says.
        timeout_s: longest wait for one call, None for the driver's own.
    """

    hosts: tuple[str, ...]
    path: str
    driver: str | None = None
    user: str | None = None
    replication: int | None = None
    block_size_bytes: int | None = None
    timeout_s: float | None = None

    @property
    def authority(self) -> str:
        """What stands for the NameNodes in a URL: an address, a name, or ours for several; empty if none was given."""
        return NAME_SERVICE if len(self.hosts) > 1 else "".join(self.hosts)

    def settings(self) -> dict[str, str]:
        """What hdfs-site.xml would have to say about several NameNodes; nothing for one."""
        if len(self.hosts) < 2:
            return {}
        names = [f"nn{index}" for index in range(len(self.hosts))]
        proxy = "org.apache.hadoop.hdfs.server.namenode.ha.ConfiguredFailoverProxyProvider"
        addresses = (f"{host}:{port or DEFAULT_RPC_PORT}" for host, port in map(split_host, self.hosts))
        return {
            "dfs.nameservices": NAME_SERVICE,
            f"dfs.ha.namenodes.{NAME_SERVICE}": ",".join(names),
            f"dfs.client.failover.proxy.provider.{NAME_SERVICE}": proxy,
            **{
                f"dfs.namenode.rpc-address.{NAME_SERVICE}.{name}": address
                for name, address in zip(names, addresses, strict=True)
            },
        }


def split_host(host: str) -> tuple[str, int | None]:
    """`host:port` in its parts; the port is None if there is none. ValueError if it is not a number."""
    name, colon, port = host.rpartition(":")
    if colon and not port.isdecimal():
        raise ValueError(f"the port {port!r} is not a number")
    return (name, int(port)) if colon else (port, None)


def parse_location(url: str) -> Location:
    """Take a URL apart.

    Raises:
        CheckpointUnsupported: if an option is not known or has a wrong value, or a port is not a number.
    """
    parts = urlsplit(url)
    given = _options(url, parts.query)
    user, _, hosts = parts.netloc.rpartition("@")
    try:
        found = Location(
            hosts=tuple(host for host in hosts.split(",") if host),
            path=parts.path.rstrip("/"),
            driver=given.get("driver"),
            user=given.get("user") or user or None,
            replication=_positive(given, "replication", int),
            block_size_bytes=_positive(given, "block_size", _size),
            timeout_s=_positive(given, "timeout", float),
        )
        for host in found.hosts:
            split_host(host)
    except ValueError as error:
        raise CheckpointUnsupported(f"{url} does not parse: {error}", url=url) from error
    return found


def _options(url: str, query: str) -> Mapping[str, str]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown:
        raise CheckpointUnsupported(
            f"{url} has the unknown option {unknown[0]!r}: there are {', '.join(OPTIONS)}", url=url
        )
    return given


def _positive(given: Mapping[str, str], name: str, parse: Callable[[str], N]) -> N | None:
    if name not in given:
        return None
    try:
        value = parse(given[name])
    except (ValueError, KeyError):
        value = None
    if value is None or not 0 < value < float("inf"):
        raise ValueError(f"{name}={given[name]} is not a positive number")
    return value


def _size(text: str) -> int:
    digits = text.rstrip("kKmMgG")
    return int(digits) * _UNITS[text[len(digits) :].lower()]
