"""The user that workers run as where the JobClient is root (--run-as): found, and checked before the node registers.

One user for all workers of a node: whoever may submit a job holds the one token of the cluster, so a choice in the spec
would part no submitters. What stays the JobClient's own: the key file, the shims, the driver of a job, which runs our
code alone and needs the key, and the folders of the logs. It does not part jobs from each other.
"""

import grp
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CHECK_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class RunAs:
    """Who a process is to be: the supplementary groups are those of the user, as at a login."""

    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    @property
    def environment(self) -> dict[str, str]:
        """What a login would set."""
        return {"HOME": self.home, "USER": self.user, "LOGNAME": self.user, "SHELL": self.shell}

    @property
    def word(self) -> str:
        """For the shim: UID:GID:GROUP,GROUP."""
        return f"{self.uid}:{self.gid}:{','.join(map(str, self.groups))}"


def find(text: str, euid: int) -> RunAs | None:
    """USER[:GROUP] by names or numbers of this machine; None if `text` is empty. Raises ValueError with a sentence."""
    if not text:
        return None
    if euid != 0:
        raise ValueError(f"--run-as {text}: only root can start workers as another user: run the JobClient as it")
    name, colon, group = text.partition(":")
    try:
        user = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise ValueError(f"--run-as {text}: this machine has no user {name!r}") from None
    if user.pw_uid == 0:
        raise ValueError(f"--run-as {text}: that is root, as which workers run without --run-as")
    gid = user.pw_gid
    if colon:
        try:
            gid = (grp.getgrgid(int(group)) if group.isdecimal() else grp.getgrnam(group)).gr_gid
        except (KeyError, OverflowError):
            raise ValueError(f"--run-as {text}: this machine has no group {group!r}") from None
    groups = tuple(sorted(set(os.getgrouplist(user.pw_name, gid))))
    return RunAs(user.pw_name, user.pw_uid, gid, groups, user.pw_dir, user.pw_shell)


def check(user: RunAs, kept: Mapping[str, Path], environ: Mapping[str, str], python: str = sys.executable) -> None:
    """Raises ValueError with a sentence where the user could not run workers, or could take what is root's.

    `kept`: option and path of each place where only root is to write; folders above them count. `environ`: what the
    user's processes may have.
    """
    for option, path in kept.items():
        real = path.resolve()
        for folder in dict.fromkeys((path, *path.parents, real, *real.parents)):
            if problem := _writable_by(user, folder):
                raise ValueError(
                    f"{option} {path}: {user.user} (--run-as) could put another file in its place, for {folder} is "
                    f"{problem}; take a place below folders that are root's"
                )
    try:
        asked = subprocess.run(
            [python, "-c", "import edl_collective, os, sys; os.chdir(sys.argv[1])", tempfile.gettempdir()],
            cwd="/",
            env=dict(environ),
            user=user.uid,
            group=user.gid,
            extra_groups=list(user.groups),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CHECK_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"--run-as {user.user}: this user cannot run {python}: {error}") from error
    if asked.returncode != 0:
        said = (asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"])[-1]
        raise ValueError(f"--run-as {user.user}: this user cannot use EDL with {python}: {said}")


def _writable_by(user: RunAs, path: Path) -> str:
    """Why the user, or others that are not root, may replace what is at `path`; empty if they may not."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ""  # to be made by us
    if status.st_uid == user.uid:
        return f"{user.user}'s own"
    if status.st_mode & stat.S_ISVTX:
        return ""  # there everybody may write, but replace nothing of others
    if status.st_mode & stat.S_IWOTH:
        return "writable by everybody"
    if status.st_mode & stat.S_IWGRP and status.st_gid in user.groups:
        return f"writable by a group of {user.user}"
    return ""


def own_folder(folder: Path, others: bool) -> None:
    """Make `folder`, or see that nobody else can read or change it. `others` may go through it, by names they know.

    Raises OSError with a sentence.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o066:
        raise OSError(f"{folder} must be a directory of this user with mode 0700; remove it")
    if others:
        folder.chmod(0o711)
