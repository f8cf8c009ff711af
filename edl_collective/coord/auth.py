"""One cluster key, and what is derived from it for each purpose. [pure]

Whoever holds the key file may do anything; what travels on a wire or in an environment is derived for one purpose
(the API, one log, one worker of one job, one driver connection) and cannot be turned back into the key, nor into what
serves another purpose.
"""

import hashlib
import hmac
from dataclasses import dataclass, field

MIN_KEY_BYTES = 16
#: holds ClusterKey.services_token for students and teachers, who are given no key
SERVICES_TOKEN_VARIABLE = "EDL_SERVICES_TOKEN"  # noqa: S105  a name


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """The secret that all processes of a cluster share; never logged, never sent."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) < MIN_KEY_BYTES:
            raise ValueError(f"the cluster key has {len(self.secret)} bytes; it needs at least {MIN_KEY_BYTES}")

    def derive(self, *purpose: str) -> bytes:
        """32 bytes for one purpose, for example derive("worker", job, worker)."""
        parts = b"".join(len(p.encode()).to_bytes(4, "big") + p.encode() for p in purpose)
        return hmac.digest(self.secret, parts, hashlib.sha256)

    def token(self, *purpose: str) -> str:
        """The same as 32 hexadecimal digits, safe in a URL, a header or an environment variable."""
        return self.derive(*purpose).hex()[:32]

    @property
    def api_token(self) -> str:
        """Bearer token of the HTTP interfaces that admits to everything, submitting jobs included."""
        return self.token("api")

    @property
    def read_only_token(self) -> str:
        """Bearer token that admits to looking alone."""
        return self.token("api", "read-only")

    @property
    def control_token(self) -> str:
        """Password of the ZooKeeper user that owns EDL's tree."""
        return self.token("zookeeper", "control")

    @property
    def services_token(self) -> str:
        """Password of the ZooKeeper user that owns the services alone: what students and teachers are given."""
        return self.token("zookeeper", "services")

    def log_token(self, node: str, job: str, worker: str) -> str:
        """Bearer token for one log of one node: it is sent to where a record says that the node is, true or not."""
        return self.token("log", node, job, worker)

    def worker_token(self, job: str, worker: str) -> str:
        return self.token("worker", job, worker)


def same(given: str, expected: str) -> bool:
    """Compare two tokens in constant time."""
    return hmac.compare_digest(given.encode(), expected.encode())
