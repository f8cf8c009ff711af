"""Workers that run as another user than their JobClient, which is root: who they are, and what they cannot reach."""

import contextlib
import os
import pwd
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_cluster import Cluster, config_in, node, running_agent, until

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.records import JobSpec, PlannedWorker, WorkerState
from jobclient.held_folders import HeldFolders
from jobclient.launch import Launcher
from jobclient.options import ConfigError
from jobclient.processes import Command, Process
from jobclient.run_as import RunAs, check, find
from jobclient.worker_link import WorkerLink

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes as another user"),
]

USER = "nobody"
UID = pwd.getpwnam(USER).pw_uid


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of root that everybody may enter, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="edl-run-as-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def nobody() -> RunAs:
    user = find(USER, 0)
    assert user is not None
    return user


async def ran(place: Path, script: str, user: RunAs | None = None, **fields: Any) -> tuple[int, str]:
    """Exit status and output of a shell script as `user`, nobody by default."""
    environ = {"PATH": os.environ["PATH"], "OF_THE_JOB": "x=y"}
    command = Command(["sh", "-c", script], environ, place, place / "w.log", user or nobody())
    process = Process(replace(command, **fields), lambda _: None)
    status = await process.exited
    await process.gone
    return status, process.problem or (place / "w.log").read_text()


async def test_a_worker_is_that_user_with_all_its_groups_and_no_other(place: Path) -> None:
    user = replace(nobody(), gid=4, groups=(4, 24))
    status, said = await ran(
        place, "id -u; id -ru; id -g; id -G; grep CapEff /proc/self/status; echo $OF_THE_JOB", user
    )
    assert status == 0
    assert said.split() == [str(UID), str(UID), "4", "4", "24", "CapEff:", "0" * 16, "x=y"]


async def test_it_reads_no_key_and_cannot_hurt_its_shim_or_its_log(place: Path) -> None:
    (place / "key").write_text("secret")
    (place / "key").chmod(0o600)
    script = "cat key; kill -9 $PPID && echo killed; mv w.log other.log; echo again > /dev/stdout; echo end"
    status, said = await ran(place, script)
    assert status == 0
    assert "secret" not in said
    assert "killed" not in said
    assert said.endswith("end\n")
    found = (place / "w.log").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (UID, 0o640)


async def test_what_a_job_sets_for_its_workers_is_not_for_the_shim(place: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "LD_PRELOAD": "/tmp/evil.so", "WORD": "é"}
    command = Command(["sh", "-c", "echo $LD_PRELOAD $WORD; exec sleep 600"], environ, place, place / "w.log", nobody())
    process = Process(command, lambda _: None)
    await until(lambda: process.pid is not None and "é" in (place / "w.log").read_text())
    assert in_proc(process._shim.pid, "environ").read_bytes() == b""
    assert not [link for link in in_proc(process.pid, "fd").iterdir() if "memfd" in os.readlink(link)]
    process.stop(0.2)
    assert await process.exited == -15
    await process.gone


async def test_whatever_it_starts_is_killed_with_it(place: Path) -> None:
    script = "trap '' TERM; setsid sh -c 'echo $$; exec sleep 600' & sleep 600"
    process = Process(
        Command(["sh", "-c", script], {"PATH": os.environ["PATH"]}, place, place / "w.log", nobody()), lambda _: None
    )
    log = place / "w.log"
    await until(lambda: log.exists() and log.read_text().endswith("\n"))
    escaped = int(log.read_text())
    assert in_proc(escaped).stat().st_uid == UID
    process.kill()
    await process.gone
    assert not in_proc(escaped).exists()


async def test_its_folder_is_made_by_itself_where_it_may(place: Path) -> None:
    status, said = await ran(place, "true", cwd=place / "pod" / "w1", make_cwd=True)
    assert status == 127
    assert f"Permission denied: '{place}/pod'" in said
    (place / "free").mkdir()
    os.chown(place / "free", UID, -1)
    assert (await ran(place, "pwd", cwd=place / "free" / "w1", make_cwd=True))[0] == 0
    assert (place / "free" / "w1").stat().st_uid == UID


async def test_a_link_in_the_place_of_a_log_is_not_followed(place: Path) -> None:
    (place / "w.log").symlink_to(place / "passwd.log")
    status, said = await ran(place, "echo evil")
    assert status == 127
    assert "symbolic links" in said
    assert not (place / "passwd.log").exists()


async def test_workers_of_an_agent_reach_it_and_hold_their_state(place: Path) -> None:
    script = (
        'id -un; test -w "$EDL_AGENT_SOCKET" && echo socket; echo "$HOME $USER"; '
        'touch "$EDL_HELD_DIR/mine" && echo held; ls "$EDL_HELD_DIR/.." || echo others are hidden; exec sleep 600'
    )
    async with running_agent(place, "--run-as", USER) as cluster:
        cluster.submit(command=("sh", "-c", script))
        cluster.plan("w1")
        log = cluster.log_dir / "j" / "w1.log"
        await until(lambda: log.exists() and "hidden" in log.read_text())
        lines = log.read_text().splitlines()
        assert lines[:2] + lines[3:4] == [USER, "socket", "held"]
        assert lines[2] == f"{nobody().home} {USER}"
        await stopped(cluster)


async def stopped(cluster: Cluster) -> None:
    cluster.plan()
    await cluster.state("w1", WorkerState.EXITED)


async def test_that_user_and_no_other_connects_to_the_socket_of_workers(tmp_path: Path) -> None:
    link = WorkerLink("run-as", lambda *_: "token", lambda *_: None, nobody())
    await link.start()
    with socket.socket(socket.AF_UNIX) as ours, acting_as(UID):
        ours.connect(str(link.path))
    with socket.socket(socket.AF_UNIX) as other, acting_as(UID - 1), pytest.raises(PermissionError):
        other.connect(str(link.path))
    await link.close()


def test_a_held_folder_is_that_users(place: Path) -> None:
    folders = HeldFolders("n", place, nobody())
    folder = folders.folder("j", 1.5)
    assert folder is not None
    with acting_as(UID):
        (folder / "held-1-2-3").write_text("x")
        with pytest.raises(PermissionError):
            list(folder.parent.iterdir())
    folders.close()
    assert not folder.exists()


def in_proc(*parts: object) -> Path:
    return Path("/proc", *map(str, parts))


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_the_driver_keeps_the_key_and_runs_as_its_jobclient(place: Path) -> None:
    config = config_in(place, "--run-as", USER, "--key-file", str(place / "key"))
    launcher = Launcher(config, node(), ClusterKey(b"0123456789abcdef"), "/tmp/a.sock")
    driver = launcher.driver("j")
    worker = launcher.worker(JobSpec(job="j", command=("true",)), PlannedWorker("w1", "a", 0), None).main
    assert (driver.run_as, str(place / "key") in driver.argv) == (None, True)
    assert worker.run_as == nobody()
    assert str(place / "key") not in "".join((*worker.argv, *worker.env.values()))


def test_a_place_that_the_user_could_swap_is_refused(place: Path) -> None:
    (place / "theirs").mkdir()
    os.chown(place / "theirs", UID, -1)
    (place / "logs").symlink_to(place / "theirs")
    user = nobody()
    for path in (place / "theirs" / "deep" / "log", place / "logs" / "log"):
        with pytest.raises(ValueError, match=rf"--log-dir {path}: nobody \(--run-as\).*nobody's own"):
            check(user, {"--log-dir": path}, {}, "true")
    (place / "all").mkdir()
    (place / "all").chmod(0o777)
    with pytest.raises(ValueError, match="writable by everybody"):
        check(user, {"--key-file": place / "all" / "key"}, {}, "true")
    check(user, {"--key-file": place / "key"}, {}, "true")


def test_a_python_that_the_user_cannot_run_is_said_before_the_node_registers(place: Path) -> None:
    hidden = place / "python"
    hidden.write_text("#!/bin/sh\n")
    hidden.chmod(0o700)
    with pytest.raises(ValueError, match=f"this user cannot run {hidden}: .*Permission denied"):
        check(nobody(), {}, {}, str(hidden))
    hidden.write_text("#!/bin/sh\necho 'ModuleNotFoundError: no edl' >&2; exit 1\n")
    hidden.chmod(0o755)
    with pytest.raises(ValueError, match=r"cannot use EDL with .*: ModuleNotFoundError: no edl"):
        check(nobody(), {}, {}, str(hidden))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no-such-user", "this machine has no user 'no-such-user'"),
        (f"{USER}:no-such-group", "this machine has no group 'no-such-group'"),
        ("99999999999999", "has no user"),
        ("root", "that is root"),
        ("0", "that is root"),
    ],
)
def test_a_user_that_cannot_be(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^--run-as {text}: .*{problem}"):
        config_in(tmp_path, "--run-as", text)


def test_users_and_groups_by_name_or_number() -> None:
    assert find(str(UID), 0) == find(USER, 0)
    found = find(f"{USER}:adm", 0)
    assert found is not None
    assert (found.gid, found.gid in found.groups) == (4, True)
    assert find("", 1000) is None
    with pytest.raises(ValueError, match="only root can start workers as another user"):
        find(USER, 1000)
