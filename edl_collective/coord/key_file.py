"""The file that holds the cluster key: found, checked, and created on first use with mode 0600.

All processes of a cluster read the same file; whoever can read it may do anything, so a file that others can read is
refused. Two processes that create it at once end with the same key. It does not distribute the key to other machines.
"""

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from edl_collective.coord.access import Access, off_loopback
from edl_collective.coord.auth import MIN_KEY_BYTES, SERVICES_TOKEN_VARIABLE, ClusterKey
from edl_collective.coord.errors import CoordError
from edl_collective.coord.paths import Paths

KEY_FILE_VARIABLE = "EDL_KEY_FILE"
_DEFAULT = "~/.edl/key"
_NEW_KEY_BYTES = 32


class KeyFileError(CoordError):
    """Raised when the cluster key cannot be read from, or created in, its file."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"key file {self.path}: {self.problem} (--key-file / {KEY_FILE_VARIABLE} names another)"


def key_file(given: str | Path | None, environ: Mapping[str, str]) -> Path:
    """The path of the key file: `given`, else $EDL_KEY_FILE, else ~/.edl/key."""
    return Path(given or environ.get(KEY_FILE_VARIABLE) or _DEFAULT).expanduser().absolute()


def load_key(path: Path) -> ClusterKey:
    """The key in `path`. Raises KeyFileError if it is missing, readable by others, or too short."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read().strip()
    except OSError as error:
        raise KeyFileError(str(path), f"cannot be read: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(str(path), f"others can read or write it (mode {stat.S_IMODE(mode):04o}); run chmod 600")
    if len(secret) < MIN_KEY_BYTES:
        raise KeyFileError(str(path), f"holds {len(secret)} bytes; a key has at least {MIN_KEY_BYTES}")
    return ClusterKey(secret)


def services_access(zookeeper: str, root: str, environ: Mapping[str, str]) -> Access | None:
    """How a student or a teacher enters the tree: by $EDL_SERVICES_TOKEN, which workers have, else by the cluster key.

    None if there is neither: enough for an open tree. Raises KeyFileError, ValueError.
    """
    paths = Paths(root)
    token = environ.get(SERVICES_TOKEN_VARIABLE)
    if token:
        return Access.of_services(token, paths)
    path = key_file(None, environ)
    if not path.exists():
        return None
    return Access.of_key(load_key(path), paths, required=off_loopback(zookeeper, "localhost"))


def load_or_create_key(path: Path) -> ClusterKey:
    """The key in `path`, made from fresh randomness if there is no such file. Raises KeyFileError."""
    if not path.exists():
        _create(path)
    return load_key(path)


def _create(path: Path) -> None:
    """Write a complete file beside `path`, then link it there: nobody reads half a key, and the first one stays."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secrets.token_hex(_NEW_KEY_BYTES).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another process was first: its key is the key
        finally:
            draft.unlink()
    except OSError as error:
        raise KeyFileError(str(path), f"cannot be created: {error.strerror}") from error
