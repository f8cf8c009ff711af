"""The private ZooKeeper server against real processes: durability, exclusiveness, and nothing left behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from kazoo.client import KazooClient

from jobserver.four_letter_word import four_letter_word
from jobserver.local_zookeeper import (
    DataDirInUseError,
    LocalZooKeeper,
    LocalZooKeeperError,
    Program,
    ProgramMissingError,
    StartFailedError,
    find_program,
)

pytestmark = pytest.mark.integration


@contextmanager
def connected(hosts: str, timeout_s: float = 10.0) -> Iterator[KazooClient]:
    client = KazooClient(hosts, timeout=timeout_s)
    client.start(timeout=60)
    try:
        yield client
    finally:
        client.stop()
        client.close()


def port_of(hosts: str) -> int:
    return int(hosts.rsplit(":", 1)[1])


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def foreground_server(data_dir: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command line; yield its process and the hosts that it printed."""
    command = [sys.executable, "-m", "jobserver.local_zookeeper", "--data-dir", str(data_dir), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def server_child(owner_pid: int) -> psutil.Process:
    [java] = psutil.Process(owner_pid).children()
    return java


def test_data_survives_stop_and_start(tmp_path: Path) -> None:
    with LocalZooKeeper(tmp_path) as first, connected(first.hosts) as client:
        client.create("/kept", b"value")
    with LocalZooKeeper(tmp_path) as second, connected(second.hosts) as client:
        assert client.get("/kept")[0] == b"value"


def test_killed_server_comes_back_on_its_port_with_its_data(tmp_path: Path) -> None:
    with LocalZooKeeper(tmp_path) as server, connected(server.hosts) as client:
        client.create("/kept", b"value")
        hosts, pid = server.hosts, server.pid
        server.kill()
        assert not psutil.pid_exists(pid)
        assert server.start() == hosts
        assert client.retry(client.get, "/kept")[0] == b"value"


def test_stop_reaps_the_server_and_frees_the_port(tmp_path: Path) -> None:
    server = LocalZooKeeper(tmp_path)
    port = port_of(server.start())
    pid = server.pid
    server.stop()
    server.stop()
    assert not psutil.pid_exists(pid)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    with pytest.raises(LocalZooKeeperError, match="start"):
        _ = server.hosts


def test_stop_kills_a_server_that_ignores_sigterm(tmp_path: Path) -> None:
    with LocalZooKeeper(tmp_path) as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
        server.stop(timeout_s=0.1)
    assert not psutil.pid_exists(pid)


def test_no_server_outlives_an_owner_killed_by_sigkill(tmp_path: Path) -> None:
    with foreground_server(tmp_path, "--port", "0") as (owner, hosts):
        java = server_child(owner.pid)
        assert "Mode: standalone" in four_letter_word("srvr", port_of(hosts))
        owner.kill()
        owner.wait()
        assert wait_for(lambda: not java.is_running())
    with LocalZooKeeper(tmp_path):
        pass  # the directory is free again


def test_command_line_stops_cleanly_on_sigterm(tmp_path: Path) -> None:
    with foreground_server(tmp_path, "--port", "0") as (owner, hosts):
        java = server_child(owner.pid)
        assert re.fullmatch(r"127\.0\.0\.1:\d+", hosts)
        owner.send_signal(signal.SIGTERM)
        assert owner.wait(60) == 0
        assert not java.is_running()


def test_second_owner_of_a_data_directory_is_refused(tmp_path: Path) -> None:
    with foreground_server(tmp_path, "--port", "0") as (owner, _hosts):
        with pytest.raises(DataDirInUseError, match=rf"process {owner.pid}\b"):
            LocalZooKeeper(tmp_path).start()
        assert server_child(owner.pid).is_running()


def test_server_listens_on_loopback_only(tmp_path: Path) -> None:
    with LocalZooKeeper(tmp_path) as server:
        listening = [
            connection.laddr
            for connection in psutil.Process(server.pid).net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening == [("127.0.0.1", port_of(server.hosts))]


def test_taken_port_is_left_alone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with LocalZooKeeper(tmp_path, taken) as server:
            assert port_of(server.hosts) != taken
            assert "Mode: standalone" in four_letter_word("srvr", port_of(server.hosts))


def test_free_port_is_honoured(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    with LocalZooKeeper(tmp_path, free) as server:
        assert server.hosts == f"127.0.0.1:{free}"


def test_session_timeout_of_two_seconds_is_granted(zookeeper: str) -> None:
    with connected(zookeeper, timeout_s=2.0):
        assert "to=2000" in four_letter_word("cons", port_of(zookeeper))


def test_a_dead_client_loses_its_ephemerals_soon_after_its_timeout(zookeeper: str) -> None:
    script = (
        "import os, signal, sys\n"
        "from kazoo.client import KazooClient\n"
        "client = KazooClient(sys.argv[1], timeout=2.0)\n"
        "client.start()\n"
        "client.create('/short', ephemeral=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with connected(zookeeper) as client:
        assert subprocess.run([sys.executable, "-c", script, zookeeper]).returncode == -signal.SIGKILL
        begin = time.monotonic()
        assert client.exists("/short")
        assert wait_for(lambda: client.exists("/short") is None)
        assert time.monotonic() - begin < 9.0


def test_missing_jar_names_file_knob_and_command(tmp_path: Path) -> None:
    jar = tmp_path / "none.jar"
    with pytest.raises(ProgramMissingError, match=r"none\.jar.*EDL_ZOOKEEPER_JAR.*apt-get install.*libzookeeper-java"):
        find_program({"PATH": os.environ["PATH"], "EDL_ZOOKEEPER_JAR": str(jar)})


def test_missing_java_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ProgramMissingError, match=r"no java found on PATH.*default-jre-headless"):
        find_program({"PATH": str(tmp_path)})


def test_server_that_cannot_run_reports_the_end_of_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jar"
    broken.write_bytes(b"")
    program = Program(find_program(os.environ).java, broken)
    with pytest.raises(StartFailedError, match=r"(?s)ended with exit code 1.*QuorumPeerMain"):
        LocalZooKeeper(tmp_path / "data", program=program).start()


def test_server_that_never_serves_is_killed_at_the_deadline(tmp_path: Path) -> None:
    silent = tmp_path / "java"
    silent.write_text('#!/bin/sh\necho "pid $$"\nexec sleep 60\n')
    silent.chmod(0o755)
    server = LocalZooKeeper(tmp_path / "data", startup_timeout_s=0.3, program=Program(silent, tmp_path / "x.jar"))
    with pytest.raises(StartFailedError, match=r"startup_timeout_s=0\.3.*\n.*pid \d+") as caught:
        server.start()
    pid = re.search(r"pid (\d+)", str(caught.value))
    assert pid is not None
    assert not psutil.pid_exists(int(pid[1]))


def test_port_taken_during_the_start_leads_to_another_attempt(tmp_path: Path) -> None:
    real = find_program(os.environ)
    unlucky_once = tmp_path / "java"
    unlucky_once.write_text(
        f'#!/bin/sh\n[ -e ../tried ] && exec {real.java} "$@"\ntouch ../tried\necho java.net.BindException\nexit 1\n'
    )
    unlucky_once.chmod(0o755)
    with LocalZooKeeper(tmp_path / "data", program=Program(unlucky_once, real.jar)) as server:
        assert (tmp_path / "tried").exists()
        assert "Mode: standalone" in four_letter_word("srvr", port_of(server.hosts))


def test_a_stranger_that_answers_on_the_port_is_not_taken_for_the_server(tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text(
        "import re, socket\n"
        "port = int(re.search(r'clientPort=(\\d+)', open('zoo.cfg').read())[1])\n"
        "with socket.create_server(('127.0.0.1', port)) as server:\n"
        "    server.settimeout(1.0)\n"
        "    while True:\n"
        "        try:\n"
        "            connection = server.accept()[0]\n"
        "        except TimeoutError:\n"
        "            break\n"
        "        with connection:\n"
        "            connection.recv(4)\n"
        "            connection.sendall(b'Mode: standalone')\n"
        "            open('asked', 'w').close()\n"
    )
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{sys.executable} ../stranger.py &\nexec sleep 60\n")
    java.chmod(0o755)
    server = LocalZooKeeper(tmp_path / "data", startup_timeout_s=3.0, program=Program(java, tmp_path / "x.jar"))
    with pytest.raises(StartFailedError, match=r"did not serve within startup_timeout_s=3\b"):
        server.start()
    assert (tmp_path / "data" / "asked").exists()


@pytest.mark.parametrize("arguments", [{"port": 70000}, {"heap_mb": 1}, {"startup_timeout_s": 0.0}])
def test_impossible_arguments_are_refused(tmp_path: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        LocalZooKeeper(tmp_path, **arguments)  # type: ignore[arg-type]
