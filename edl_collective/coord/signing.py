"""Signed specs: what JobClients execute was written by somebody who holds the cluster key. [pure]

The signature is the first member of the stored JSON object and covers every other byte of it and the path, so a spec
cannot be changed, nor moved to another job. Readers that need no proof parse the record as ever: the member is one that
they do not know. It says nothing of when: whoever can write the path can put back an older spec of the same job.
"""

import hashlib
import hmac

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.errors import RecordError, RecordTooLarge
from edl_collective.coord.records import MAX_RECORD_BYTES, JobSpec, decode, encode

_HEAD, _TAIL = b'{"signature":"', b'",'
_DIGITS = 64
_BODY = len(_HEAD) + _DIGITS + len(_TAIL)


class UnsignedSpec(RecordError):
    """Raised when a spec does not carry the signature of this cluster's key."""

    def __init__(self, path: str, detail: str = "") -> None:
        super().__init__(path, detail)

    def __str__(self) -> str:
        return (
            f"{self.path} is not signed with the cluster key, so nothing of it is run: it was written past the API, or "
            "with another --key-file; delete the job and submit it again"
        )


class SpecSigner:
    """Signs and checks the specs of one cluster."""

    def __init__(self, key: ClusterKey) -> None:
        self._secret = key.derive("spec")

    def sign(self, path: str, spec: JobSpec) -> bytes:
        """The bytes to store at `path`. Raises RecordTooLarge."""
        body = encode(spec, path)
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

    def check(self, path: str, data: bytes) -> None:
        """Raises UnsignedSpec."""
        if not self.is_signed(path, data):
            raise UnsignedSpec(path)

    def _signature(self, path: str, body: bytes) -> bytes:
        name = path.encode()
        return hmac.new(self._secret, len(name).to_bytes(4, "big") + name + body, hashlib.sha256).hexdigest().encode()


def is_unsigned(signer: SpecSigner, path: str, data: bytes) -> bool:
    """Whether `data` is a spec, but not one that somebody with the key wrote."""
    try:
        decode(data, JobSpec, path)
    except RecordError:
        return False
    return not signer.is_signed(path, data)
