"""How much may be written into a folder in memory before the machine swaps or the container is ended for it.

What a container may take is the limit of its control group, to which pages of tmpfs are charged; the host's figures do
not show it. Reads both versions of control groups. Where no limit is set or none can be read, the host's figures count.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")

#: names of the limit, of what is in use, and, in memory.stat, of the files' pages that the kernel gives back
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def free_bytes(folder: Path, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """The least of what the file system, the machine and this process's control groups have free. Raises OSError."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = min(free, int(line.split()[1]) * 1024)
    return max(0, min([free, *_left_in_groups(proc, cgroups)]))


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            hierarchy, controllers, path = line.split(":", 2)
            if hierarchy == "0":
                yield from _left(cgroups, path, *_V2)
            elif "memory" in controllers.split(","):
                yield from _left(cgroups / "memory", path, *_V1)


def _left(root: Path, path: str, limit: str, usage: str, reclaimable: tuple[str, str]) -> Iterator[int]:
    """What the group at `path` and each one that it is in have left.

    In a container the path may be that of the host, which is not there; the root of what is mounted is its own then.
    """
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(root):
            with contextlib.suppress(OSError, ValueError):  # no such group, no memory controller, or "max"
                counts = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
                cached = sum(int(counts.get(name, 0)) for name in reclaimable)
                yield int((folder / limit).read_text()) - int((folder / usage).read_text()) + cached
