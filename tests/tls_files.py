"""A certificate for 127.0.0.1 that signs itself, with its key, and one that signed nothing: for tests alone."""

from pathlib import Path

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBqjCCAU+gAwIBAgIURTv7krhqgDZYDpRpOkrzLHzOUewwCgYIKoZIzj0EAwIw
EzERMA8GA1UEAwwIZWRsIHRlc3QwIBcNMjYxMTIxMTYwMjAwWhgPMjEyNjEwMjgx
NjAyMDBaMBMxETAPBgNVBAMMCGVkbCB0ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAEU8eV9p+YDCiWX0QtAW0bBppYsVllUdF9JD549c64L2xw0spvzD7VCEy/
n6uDFwZVLoMHTGZ2xz+VUs6LBhRo26N/MH0wHQYDVR0OBBYEFH5jvN60V0VlEbMM
Ss+V168IQgnOMB8GA1UdIwQYMBaAFH5jvN60V0VlEbMMSs+V168IQgnOMBoGA1Ud
EQQTMBGHBH8AAAGCCWxvY2FsaG9zdDAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB
/wQEAwIChDAKBggqhkjOPQQDAgNJADBGAiEAnioXwbi0R1jfmil3XKEHcYab64ZZ
v1gvJDRZflRSYvECIQCG0dEVibF0kZSiLlCQDtK4fnjvembh5tVtZKhXB0R8zQ==
-----END CERTIFICATE-----
"""

KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgucheTlAcyivZSGFS
Jau7Ku1yeCMd2mFkQXRI52DPwcyhRANCAARTx5X2n5gMKJZfRC0BbRsGmlixWWVR
0X0kPnj1zrgvbHDSym/MPtUITL+fq4MXBlUugwdMZnbHP5VSzosGFGjb
-----END PRIVATE KEY-----
"""

STRANGER = """\
-----BEGIN CERTIFICATE-----
MIIBfDCCASGgAwIBAgIUefA7OdvigTieeKNm/CI+o7BEIrMwCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHYW5vdGhlcjAgFw0yNjExMjExNjAyMDBaGA8yMTI2MTAyODE2
MDIwMFowEjEQMA4GA1UEAwwHYW5vdGhlcjBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABEtnQRtxbKOV29YhJaliHmVAkKE6raqmvTc/yryhiUCOMA98cUlAAe+WRj/Q
gU267OX5TxvRg5HvOAo4UiJx3xajUzBRMB0GA1UdDgQWBBSC28TquI0W5e/6I2vu
Uz1/jPENnjAfBgNVHSMEGDAWgBSC28TquI0W5e/6I2vuUz1/jPENnjAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQCKWqSRt3CnwyUjfjIqeP+NIod0
3RFHjOP/gBjiPashcQIhAN83XvSFuXSv7IkYaIeRSe7Gz2+Zax/O8gSkZO2TXlJ9
-----END CERTIFICATE-----
"""


def write_tls_files(folder: Path) -> tuple[Path, Path, Path]:
    """Files of the certificate, its key, and the stranger's certificate."""
    paths = folder / "cert.pem", folder / "key.pem", folder / "stranger.pem"
    for path, text in zip(paths, (CERTIFICATE, KEY, STRANGER), strict=True):
        path.write_text(text, encoding="ascii")
    return paths
