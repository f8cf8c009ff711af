"""Who a ZooKeeper session says it is, and who owns what it creates. [pure]

Two users, each with a password derived from the cluster key: `edl` owns the tree and `edl-services` what lies below
services, where students and teachers write, who run users' code and are given no more than that. Who holds the key is
both. ZooKeeper sends passwords as they are: who reads the network to ZooKeeper can be either, but cannot sign a spec.
"""

import base64
import hashlib
import ipaddress
from dataclasses import dataclass, field
from typing import Self

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.paths import Paths

CONTROL_USER = "edl"
SERVICES_USER = "edl-services"
#: what --zookeeper-acl takes
ACL_MODES = ("key", "open")


@dataclass(frozen=True, slots=True)
class Access:
    """One session's part in the tree below `paths`."""

    paths: Paths
    services_password: str = field(repr=False)
    #: None: this session may reach the services alone
    control_password: str | None = field(default=None, repr=False)
    #: refuse a tree that everybody may change, and close a new one
    required: bool = False

    @classmethod
    def of_key(cls, key: ClusterKey, paths: Paths, *, required: bool = False) -> Self:
        """For who holds the cluster key. A tree that is closed is entered either way."""
        return cls(paths, key.services_token, key.control_token, required)

    @classmethod
    def of_services(cls, token: str, paths: Paths) -> Self:
        """For a student or a teacher, with the services token."""
        return cls(paths, token)

    @property
    def passwords(self) -> tuple[tuple[str, str], ...]:
        """User and password of each user that this session is."""
        services = (SERVICES_USER, self.services_password)
        return (services,) if self.control_password is None else ((CONTROL_USER, self.control_password), services)

    @property
    def gate(self) -> str:
        """The path whose owner tells whether the tree is closed, and is ours."""
        return self.paths.services if self.control_password is None else self.paths.root

    def owner(self, path: str) -> str:
        """The digest id that owns `path`, which alone may read and change it."""
        below = path == self.paths.services or path.startswith(self.paths.services + "/")
        if below or self.control_password is None:
            return digest_id(SERVICES_USER, self.services_password)
        return digest_id(CONTROL_USER, self.control_password)


def digest_id(user: str, password: str) -> str:
    """As ZooKeeper's digest scheme writes it in an ACL. (SHA-1 is the scheme's: the password has 128 random bits.)"""
    digest = hashlib.sha1(f"{user}:{password}".encode()).digest()  # noqa: S324
    return f"{user}:{base64.b64encode(digest).decode()}"


def is_loopback(host: str) -> bool:
    """True when only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def off_loopback(zookeeper: str, address: str) -> bool:
    """Whether other machines can reach the ZooKeeper at `zookeeper` (host:port,...) or a process at `address`."""
    return not all(is_loopback(host) for host in (address, *(part.rpartition(":")[0] for part in zookeeper.split(","))))
