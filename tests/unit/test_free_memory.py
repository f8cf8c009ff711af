"""How much memory may be taken: the limits of control groups, read from folders like the kernel's."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from edl_collective.free_memory import free_bytes

MB = 1 << 20
V1 = {
    "limit": "memory.limit_in_bytes",
    "usage": "memory.usage_in_bytes",
    "stat": "total_inactive_file {cached}\ntotal_active_file 0\n",
}
V2 = {"limit": "memory.max", "usage": "memory.current", "stat": "inactive_file 0\nactive_file {cached}\nshmem 999\n"}


class Machine:
    """Folders that look like /proc and /sys/fs/cgroup, and one for the state on a file system with more space."""

    def __init__(self, base: Path, cgroup: str) -> None:
        self.base = base
        (base / "proc" / "self").mkdir(parents=True)
        (base / "proc" / "meminfo").write_text("MemTotal: 999 kB\nMemAvailable: 1000 kB\n")
        (base / "proc" / "self" / "cgroup").write_text(cgroup)

    def group(self, path: str, version: Mapping[str, str], limit: object, usage: int, cached: int = 0) -> None:
        folder = self.base / "cgroups" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / version["limit"]).write_text(f"{limit}\n")
        (folder / version["usage"]).write_text(f"{usage}\n")
        (folder / "memory.stat").write_text(version["stat"].format(cached=cached))

    def free_bytes(self) -> int:
        return free_bytes(self.base, self.base / "proc", self.base / "cgroups")


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/user\n")
    assert machine.free_bytes() == 1000 * 1024
    machine.group("user", V2, "max", MB)
    assert machine.free_bytes() == 1000 * 1024


@pytest.mark.parametrize("group", ["pod/worker", "pod", ""])
def test_the_limit_of_any_group_that_the_process_is_in_counts(tmp_path: Path, group: str) -> None:
    machine = Machine(tmp_path, "0::/pod/worker\n")
    machine.group("pod/worker", V2, "max", 0)
    machine.group(group, V2, 700_000, 300_000)
    machine.group("other", V2, 1, 1)
    assert machine.free_bytes() == 400_000


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "9:cpu:/a\n4:hugetlb,memory:/a\n0::/\n")
    machine.group("memory/a", V1, 700_000, 300_000)
    machine.group("memory", V1, 9223372036854771712, 900_000)
    assert machine.free_bytes() == 400_000


def test_in_a_container_that_sees_the_hosts_path_its_own_group_is_the_root(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "4:memory:/docker/0123\n")
    machine.group("memory", V1, 700_000, 300_000)
    assert machine.free_bytes() == 400_000


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_pages_of_files_are_given_back_and_do_not_count(tmp_path: Path, version: Mapping[str, str]) -> None:
    machine = Machine(tmp_path, "4:memory:/\n" if version is V1 else "0::/\n")
    machine.group("memory" if version is V1 else "", version, 700_000, 690_000, cached=500_000)
    assert machine.free_bytes() == 510_000


def test_a_group_above_its_limit_has_nothing_free(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/\n")
    machine.group("", V2, 700_000, 800_000)
    assert machine.free_bytes() == 0


def test_without_control_groups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "")
    (tmp_path / "proc" / "self" / "cgroup").unlink()
    assert machine.free_bytes() == 1000 * 1024
