"""Signed specs: what JobClients execute was written by somebody who holds the cluster key. [pure]

The signature is the first member of the stored JSON object and covers every other byte of it and the path, so a spec
cannot be changed, nor moved to another job. The second is `serial`, which rises with each change of a submission; with
`submitted_at` it orders the specs that a job ever had, and who remembers the newest (NewestSpecs) refuses an older one
that somebody puts back. Readers that need no proof parse the record as ever: they do not know these members.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.errors import RecordError, RecordTooLarge
from edl_collective.coord.records import MAX_RECORD_BYTES, JobSpec, NodeRecord, decode, encode

_HEAD, _TAIL = b'{"signature":"', b'",'
_DIGITS = 64
#: no length of a path begins so
_NODE = b"\xff\xff\xff\xffnode "
_BODY = len(_HEAD) + _DIGITS + len(_TAIL)
_SERIAL = re.compile(rb'"serial":([0-9]{1,10}),')
#: specs of jobs that were deleted and are remembered, so that none of them comes back
MAX_GONE = 10_000
#: between a submission and the next of that name, whatever the clocks of JobServers say, seconds
_NEXT_S = 0.001


class UnsignedSpec(RecordError):
    """Raised when a spec does not carry the signature of this cluster's key."""

    def __init__(self, path: str, detail: str = "") -> None:
        super().__init__(path, detail)

    def __str__(self) -> str:
        return (
            f"{self.path} is not signed with the cluster key, so nothing of it is run: it was written past the API, or "
            "with another --key-file; delete the job and submit it again"
        )


class OldSpec(RecordError):
    """Raised when a signed spec is older than one of the same job that was seen, or of a job that was deleted."""

    def __init__(self, path: str, detail: str = "") -> None:
        super().__init__(path, detail)

    def __str__(self) -> str:
        return (
            f"{self.path} is an older spec of this job that somebody put back, so nothing of it is run: {self.detail}; "
            "delete the job and submit it again (if ZooKeeper itself was put back, restart what says this)"
        )


class OtherKey(RecordError):
    """Raised when the JobClient of a node has another cluster key: it would run nothing of what is planned there."""

    def __init__(self, path: str, detail: str = "") -> None:
        super().__init__(path, detail)

    def __str__(self) -> str:
        return (
            f"{self.path}: its JobClient has another cluster key, so nothing is planned there: give it the --key-file "
            "of the JobServers"
        )


class SpecSigner:
    """Signs and checks the specs of one cluster."""

    def __init__(self, key: ClusterKey) -> None:
        self._secret = key.derive("spec")

    def sign(self, path: str, spec: JobSpec, version: int = 0) -> bytes:
        """The bytes to store at `path`, which this write brings to `version`. Raises RecordTooLarge."""
        body = b'{"serial":%d,' % version + encode(spec, path)[1:]
        data = _HEAD + self._signature(path, body) + _TAIL + body[1:]
        if len(data) > MAX_RECORD_BYTES:
            raise RecordTooLarge(path, f"{len(data)} bytes with its signature; the bound is {MAX_RECORD_BYTES}")
        return data

    def is_signed(self, path: str, data: bytes) -> bool:
        """Whether `data`, which stands at `path`, came out of `sign` for this path."""
        if not data.startswith(_HEAD) or data[_BODY - len(_TAIL) : _BODY] != _TAIL:
            return False
        given = data[len(_HEAD) : len(_HEAD) + _DIGITS]
        return hmac.compare_digest(given, self._signature(path, b"{" + data[_BODY:]))

    def node_proof(self, node: str, incarnation: str) -> str:
        """What a node's record says to show that its JobClient has the key; it can be copied, so only mistakes show."""
        return hmac.new(self._secret, _NODE + f"{node} {incarnation}".encode(), hashlib.sha256).hexdigest()[:32]

    def check_node(self, path: str, node: NodeRecord) -> None:
        """Raises OtherKey. A record without a proof passes: it may be that of an older JobClient."""
        expected = self.node_proof(node.node, node.incarnation)
        if node.proof and not hmac.compare_digest(node.proof.encode(), expected.encode()):
            raise OtherKey(path)

    def check(self, path: str, data: bytes) -> None:
        """Raises UnsignedSpec."""
        if not self.is_signed(path, data):
            raise UnsignedSpec(path)

    def _signature(self, path: str, body: bytes) -> bytes:
        name = path.encode()
        return hmac.new(self._secret, len(name).to_bytes(4, "big") + name + body, hashlib.sha256).hexdigest().encode()


def _serial(data: bytes) -> int:
    """Of signed bytes; 0 for what was signed before there were serials."""
    found = _SERIAL.match(data, _BODY)
    return int(found[1]) if found else 0


class NewestSpecs:
    """The newest spec of each job that one process has seen, in memory: it begins with nothing.

    Not for several threads at a time.
    """

    def __init__(self, signer: SpecSigner) -> None:
        self._signer = signer
        #: by path: when the newest was submitted, and its serial
        self._newest: dict[str, tuple[float, int]] = {}
        #: the same of those that were there and are not, the longest gone first
        self._gone: dict[str, tuple[float, int]] = {}

    def read(self, path: str, data: bytes) -> JobSpec:
        """The spec in `data`, as it stands at `path`. Raises RecordError, UnsignedSpec, OldSpec."""
        spec = decode(data, JobSpec, path)
        self._signer.check(path, data)
        order = (spec.submitted_at, _serial(data))
        if order <= self._gone.get(path, (-1.0, 0)):
            raise OldSpec(path, "the job was deleted")
        newest = self._newest.get(path, order)
        if order < newest:
            was = f"after change {newest[1]} of {newest[0]:.3f}"
            raise OldSpec(path, f"it is change {order[1]} of {order[0]:.3f}, {was}")
        self._newest[path] = order
        return spec

    def refuses(self, path: str, data: bytes) -> bool:
        """Whether `data` is a spec, but none that is to be run."""
        try:
            self.read(path, data)
        except (UnsignedSpec, OldSpec):
            return True
        except RecordError:
            return False
        return False

    def gone(self, path: str) -> None:
        """Nothing is at `path` any more."""
        newest = self._newest.pop(path, None)
        if newest is None:
            return
        self._gone.pop(path, None)
        self._gone[path] = newest
        while len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]

    def only(self, paths: Iterable[str]) -> None:
        """Specs are at these paths, and at no others."""
        for path in self._newest.keys() - set(paths):
            self.gone(path)

    def after(self, path: str, now_s: float) -> float:
        """When a new submission is to say that it was made: `now_s` (wall time), but after all that were seen there."""
        seen = (self._newest.get(path), self._gone.get(path))
        return max([now_s, *(order[0] + _NEXT_S for order in seen if order is not None)])
