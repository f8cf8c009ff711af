"""Where a start script tells the address of the private ZooKeeper that it started, so that others here find it.

One file in the data directory, replaced as a whole, there while that ZooKeeper is meant to run: whoever finds it need
not guess a port, behind which may be somebody else's server. The port is remembered, so that the next start prefers it.
"""

from collections.abc import Mapping
from pathlib import Path

DATA_DIR_VARIABLE = "EDL_DATA_DIR"
_DEFAULT = "~/.edl"
_HOSTS = "zookeeper.hosts"
_PORT = "zookeeper.port"


def data_dir(environ: Mapping[str, str]) -> Path:
    """What the start scripts keep between runs lies here: $EDL_DATA_DIR, else ~/.edl."""
    return Path(environ.get(DATA_DIR_VARIABLE) or _DEFAULT).expanduser().absolute()


def told_hosts(folder: Path) -> str | None:
    """The address that is told in `folder`; None while no start script runs."""
    return _read(folder / _HOSTS)


def last_port(folder: Path, default: int) -> int:
    """The port of the last address that was told in `folder`."""
    text = _read(folder / _PORT) or ""
    return int(text) if text.isdecimal() else default


def tell_hosts(folder: Path, hosts: str) -> None:
    """Tell `hosts`, a host:port. Raises OSError."""
    (folder / _PORT).write_text(hosts.rpartition(":")[2], encoding="ascii")
    draft = folder / f"{_HOSTS}.new"
    draft.write_text(hosts, encoding="ascii")
    draft.replace(folder / _HOSTS)


def withdraw_hosts(folder: Path) -> None:
    """Tell nothing any more; harmless when nothing was told."""
    (folder / _HOSTS).unlink(missing_ok=True)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
