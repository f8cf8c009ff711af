"""TLS among processes that share the cluster key: each makes its own certificate, and knows that of all others.

The key determines a certificate authority, so that nothing is copied, stored or renewed. A certificate of it proves the
key and nothing about names: who verifies one compares none, so that addresses may change. Browsers, which compare them,
find the names that a process knows for itself. Needs `cryptography`, which is imported where it is used.
"""

import datetime
import functools
import ipaddress
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.errors import CoordError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

#: instead of a file: the authorities that this machine trusts
SYSTEM = "system"
AUTHORITY_NAME = "EDL cluster authority"
#: order of the group of P-256
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
#: processes make certificates for as long as they live; clocks need not agree
_FIRST_DAY, _LAST_DAY = datetime.datetime(2020, 1, 1), datetime.datetime(2120, 1, 1)


class TlsError(CoordError):
    """Raised when a certificate or its key cannot be read, or do not belong together."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(file, problem)
        self.file = file
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.file} cannot be used for TLS: {self.problem} (--tls-cert, --tls-key; for clients EDL_TLS_CA)"


def server_context(key: ClusterKey, names: Iterable[str]) -> ssl.SSLContext:
    """For a server that proves the cluster key. `names`: host names and addresses that it is reached by."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    own = ec.generate_private_key(ec.SECP256R1())
    certificate = _issue(key, own, list(names))
    text = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with tempfile.TemporaryDirectory(prefix="edl-tls-") as folder:  # of mode 0700; ssl reads files alone
        file = Path(folder, "certificate.pem")
        file.write_bytes(text + certificate.public_bytes(serialization.Encoding.PEM))
        return server_context_of(file, None)


def server_context_of(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """For a server with a certificate (PEM, with its chain) of somebody's own. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(str(certificate), getattr(error, "strerror", None) or str(error)) from error
    return context


def ends_at(certificate: Path) -> float:
    """Wall time from which clients refuse the first certificate in a file (PEM). Raises TlsError."""
    from cryptography import x509

    try:
        first, *_ = x509.load_pem_x509_certificates(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise TlsError(str(certificate), getattr(error, "strerror", None) or str(error)) from error
    return first.not_valid_after_utc.timestamp()


@functools.lru_cache(maxsize=4)
def client_context(key: ClusterKey) -> ssl.SSLContext:
    """For a client that talks only to processes with the cluster key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # the certificate proves the key, which is all there is to prove
    context.load_verify_locations(cadata=authority_pem(key))
    return context


def client_context_of(file: str) -> ssl.SSLContext:
    """For a client that trusts the authorities in `file` (PEM), or those of the "system". Raises TlsError."""
    try:
        context = ssl.create_default_context(cafile=None if file == SYSTEM else file)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(file, getattr(error, "strerror", None) or str(error)) from error
    authorities: list[dict[str, Any]] = context.get_ca_certs()
    names = {value for authority in authorities for part in authority["subject"] for _, value in part}
    if names == {AUTHORITY_NAME}:
        context.check_hostname = False
    return context


def authority_pem(key: ClusterKey) -> str:
    """The certificate of the authority that the key determines; no secret."""
    from cryptography.hazmat.primitives import serialization

    own = _authority_key(key)
    return _issue(key, own, None).public_bytes(serialization.Encoding.PEM).decode("ascii")


def _authority_key(key: ClusterKey) -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    number = int.from_bytes(key.derive("tls", "authority") + key.derive("tls", "authority", "more"), "big")
    return ec.derive_private_key(number % (_ORDER - 1) + 1, ec.SECP256R1())


def _issue(key: ClusterKey, own: "EllipticCurvePrivateKey", names: list[str] | None) -> "x509.Certificate":
    """A certificate for `own`, signed by the authority; None for names: that of the authority itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority, is_authority = _authority_key(key), names is None
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AUTHORITY_NAME)])
    subject = issuer if is_authority else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "EDL")])
    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FIRST_DAY)
        .not_valid_after(_LAST_DAY)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(_usage(is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    if names is not None:
        known = dict.fromkeys([*names, "localhost", "127.0.0.1", "::1"])
        alternatives = [found for found in map(_name, known) if found is not None]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(authority, hashes.SHA256())


def _usage(is_authority: bool) -> "x509.KeyUsage":
    from cryptography import x509

    none = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
    )
    return x509.KeyUsage(
        **none, digital_signature=not is_authority, key_cert_sign=is_authority, encipher_only=False, decipher_only=False
    )


def _name(name: str) -> "x509.GeneralName | None":
    """None for what no certificate can hold: nobody compares it."""
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return x509.DNSName(name) if name.isascii() and name else None
