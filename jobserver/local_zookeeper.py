"""A private ZooKeeper server on this machine, for one person, one demonstration, or one test session.

Invariants: at most one server runs on a data directory, whoever starts it (a lock that the server inherits); the
server listens on one address alone, 127.0.0.1 unless told otherwise; it never outlives the process that started it,
not even after SIGKILL of that process; `start` returns only when the server that answers is the one that it started.
What it does not do: quorums, remote clients, authentication. Production uses an ensemble of its own
(`--zookeeper HOSTS`). The choices are explained in docs/decisions/002-local-zookeeper.md.
"""

import argparse
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

import psutil

from jobserver.four_letter_word import HOST, four_letter_word

logger = logging.getLogger(__name__)

DEFAULT_PORT = 2181
DEBIAN_JAR = Path("/usr/share/java/zookeeper.jar")
INSTALL_COMMAND = "apt-get install --no-install-recommends default-jre-headless libzookeeper-java"

#: Session time-outs are rounded up to ticks, so a short tick lets a 2 s session expire after 2 s and not after 4 s.
_ZOO_CFG = """\
tickTime=250
minSessionTimeout=1000
maxSessionTimeout=120000
dataDir=./data
clientPortAddress={host}
clientPort={port}
maxClientCnxns=0
admin.enableServer=false
4lw.commands.whitelist=srvr,ruok,cons,mntr
autopurge.snapRetainCount=3
autopurge.purgeInterval=1
"""
#: Argument 0 is our process id. The shell replaces itself only while we are still its parent: an orphan from between
#: the fork and the moment at which the parent-death signal is armed ends at once.
_EXEC_UNLESS_ORPHANED = '[ "$PPID" = "$0" ] && exec "$@"'
_PORT_ATTEMPTS = 3
_LOCK_WAIT_S = 3.0
_POLL_S = 0.02


class LocalZooKeeperError(Exception):
    """Base of the errors of a private ZooKeeper server."""


class ProgramMissingError(LocalZooKeeperError):
    """Raised when Java or the ZooKeeper jar is not installed."""


class DataDirInUseError(LocalZooKeeperError):
    """Raised when another process owns the data directory."""


class StartFailedError(LocalZooKeeperError):
    """Raised when the server ended, or did not serve in time, after it was started."""


@dataclass(frozen=True)
class Program:
    """The files that make up a ZooKeeper server: the Java launcher and the server's jar."""

    java: Path
    jar: Path


def find_program(environ: Mapping[str, str]) -> Program:
    """Find Java and the ZooKeeper jar.

    EDL_ZOOKEEPER_JAR in `environ` names the jar, else Debian's is taken; java comes from JAVA_HOME, else from PATH.
    Raises ProgramMissingError, with the command that installs what is missing.
    """
    home = environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else environ.get("PATH"))
    if java is None:
        where = f"under JAVA_HOME={home}" if home else "on PATH"
        raise ProgramMissingError(f"no java found {where}, which a private ZooKeeper needs: {INSTALL_COMMAND}")
    named = environ.get("EDL_ZOOKEEPER_JAR")
    jar = Path(named) if named else DEBIAN_JAR
    if not jar.is_file():
        origin = " (named by EDL_ZOOKEEPER_JAR)" if named else ""
        raise ProgramMissingError(f"no ZooKeeper jar at {jar}{origin}: {INSTALL_COMMAND}, or set EDL_ZOOKEEPER_JAR")
    return Program(Path(java).absolute(), jar.absolute())


class LocalZooKeeper:
    """A private ZooKeeper server that this process owns.

    data_dir: kept between runs; holds the data, the configuration and zookeeper.log. host: the address to listen on.
    port: the preferred TCP port, 0 for any. When somebody else has it, a free one is taken; `hosts` tells which.
    heap_mb: upper bound of the Java heap. startup_timeout_s: how long `start` waits for the server to serve.
    program: which files to run; found in this process's environment when None.
    A server that was killed or stopped may be started again and prefers the port that it had.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        host: str = HOST,
        heap_mb: int = 128,
        startup_timeout_s: float = 20.0,
        program: Program | None = None,
    ) -> None:
        if not 0 <= port <= 65535:
            raise ValueError(f"port must be in 0..65535, not {port}")
        if heap_mb < 16:
            raise ValueError(f"heap_mb must be at least 16, not {heap_mb}")
        if startup_timeout_s <= 0:
            raise ValueError(f"startup_timeout_s must be positive, not {startup_timeout_s}")
        self._dir = data_dir.absolute()
        self._host = host
        self._port = port
        self._heap_mb = heap_mb
        self._startup_timeout_s = startup_timeout_s
        self._program = program
        self._child: _Child | None = None

    @property
    def hosts(self) -> str:
        """The connection string for clients; LocalZooKeeperError before `start`."""
        self._running()
        return f"{self._host}:{self._port}"

    @property
    def pid(self) -> int:
        """The process id of the server; LocalZooKeeperError before `start`."""
        return self._running().pid

    @property
    def log_path(self) -> Path:
        """The server's log; that of the start before is kept beside it with the suffix `.1`."""
        return self._dir / "zookeeper.log"

    def start(self) -> str:
        """Start the server, wait until it serves, return its connection string.

        Raises ProgramMissingError, DataDirInUseError, or StartFailedError with the last lines of the log.
        """
        if self._child is not None and self._child.exit_code is None:
            raise LocalZooKeeperError(f"the server on {self._dir} is already running as pid {self._child.pid}")
        program = self._program or find_program(os.environ)
        self._dir.mkdir(parents=True, exist_ok=True)
        lock_fd = _lock(self._dir / "lock")
        try:
            deadline = time.monotonic() + self._startup_timeout_s
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                port = _choose_port(self._host, self._port)
                if self._start_on(port, program, lock_fd, deadline):
                    return self.hosts
                logger.warning("port %d was taken while ZooKeeper started (attempt %d)", port, attempt)
            raise StartFailedError(f"no free port found in {_PORT_ATTEMPTS} attempts; stop what takes them")
        finally:
            os.close(lock_fd)  # the server holds its own copy: the lock lives exactly as long as it does

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the server: SIGTERM, after `timeout_s` SIGKILL, and reap it. Harmless when it is not running."""
        child, self._child = self._child, None
        if child is None:
            return
        child.send(signal.SIGTERM)
        if not child.exited.wait(timeout_s):
            logger.warning("ZooKeeper pid %d ignored SIGTERM for %.1f s: killing it", child.pid, timeout_s)
            child.send(signal.SIGKILL)
            child.exited.wait()

    def kill(self) -> None:
        """End the server with SIGKILL and reap it, as a crash would. `start` brings it back with its data."""
        child = self._running()
        child.send(signal.SIGKILL)
        child.exited.wait()
        self._child = None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the server has ended and return its exit code; None when it still runs after `timeout_s`."""
        child = self._running()
        child.exited.wait(timeout_s)
        return child.exit_code

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.stop()

    def _running(self) -> "_Child":
        if self._child is None:
            raise LocalZooKeeperError("the private ZooKeeper is not started: call start() first")
        return self._child

    def _start_on(self, port: int, program: Program, lock_fd: int, deadline: float) -> bool:
        """Start on `port`; False when somebody took the port meanwhile, StartFailedError on any other failure."""
        self._write_configuration(port)
        child = _Child(_command(program, self._heap_mb), self._dir, self.log_path, lock_fd)
        serving = False
        try:
            serving = _wait_until_serving(child, self._host, port, deadline)
        finally:
            if not serving:
                child.send(signal.SIGKILL)
                child.exited.wait()
        if serving:
            self._child, self._port = child, port
            return True
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        if any("BindException" in line for line in lines):
            return False
        fate = f"ended with exit code {child.exit_code}"
        if time.monotonic() >= deadline:
            fate = f"did not serve within startup_timeout_s={self._startup_timeout_s:g}"
        end = "\n".join(lines[-15:])
        raise StartFailedError(f"ZooKeeper on {self._dir} {fate}; the end of {self.log_path}:\n{end}")

    def _write_configuration(self, port: int) -> None:
        (self._dir / "zoo.cfg").write_text(_ZOO_CFG.format(host=self._host, port=port), encoding="ascii")
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".log.1"))


class _Child:
    """The server process, held by a thread of its own.

    The kernel sends a parent-death signal when the *thread* that forked ends, so that thread must live as long as
    the child; here it waits for the child and so doubles as the reaper.
    """

    def __init__(self, command: Sequence[str], cwd: Path, log_path: Path, lock_fd: int) -> None:
        #: Set once the process has ended and was reaped; `exit_code` is not None from then on.
        self.exited = threading.Event()
        self.exit_code: int | None = None
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        arguments = (command, cwd, log_path, lock_fd)
        threading.Thread(target=self._hold, args=arguments, name="local-zookeeper", daemon=True).start()
        self._started.wait()
        if self._failure is not None:
            raise StartFailedError(f"cannot start ZooKeeper: {self._failure}") from self._failure

    @property
    def pid(self) -> int:
        assert self._process is not None, "the constructor returns only after the process was started"
        return self._process.pid

    def send(self, signal_number: int) -> None:
        """Send a signal; nothing happens when the process has ended."""
        assert self._process is not None
        self._process.send_signal(signal_number)

    def _hold(self, command: Sequence[str], cwd: Path, log_path: Path, lock_fd: int) -> None:
        try:
            with log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(lock_fd,),
                    start_new_session=True,  # Ctrl-C reaches the owner alone, which stops the server last
                )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        self.exit_code = self._process.wait()
        self.exited.set()


def _command(program: Program, heap_mb: int) -> list[str]:
    guard = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", _EXEC_UNLESS_ORPHANED, str(os.getpid())]
    # The jar's manifest names what it needs, except for a logging backend, which Debian installs beside it.
    class_path = f"{program.jar}:{program.jar.with_name('slf4j-simple.jar')}"
    flags = [
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.net.preferIPv4Stack=true",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
        "-Dzookeeper.jmx.log4j.disable=true",
        "-Dzookeeper.preAllocSize=1024",  # KiB by which the transaction log grows; the default is 64 MiB
    ]
    # QuorumPeerMain runs a standalone server too, and unlike ZooKeeperServerMain it honours autopurge.
    main = ["org.apache.zookeeper.server.quorum.QuorumPeerMain", "./zoo.cfg"]
    return [*guard, str(program.java), *flags, "-cp", class_path, *main]


def _lock(path: Path) -> int:
    """Lock the data directory and return the descriptor that holds the lock.

    Waits a moment, because a server whose owner has just been killed is still dying.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(_POLL_S)  # flock has no time-out and no event
                continue
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise DataDirInUseError(
                f"{path.parent} is in use by the ZooKeeper of process {owner}: stop it or choose another --data-dir"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
        return fd


def _choose_port(host: str, preferred: int) -> int:
    """Return `preferred` if nobody listens there, else a free port."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # in use, or not ours to take: the kernel's choice comes next
                probe.bind((host, port))
                chosen: int = probe.getsockname()[1]
                if preferred not in (0, chosen):
                    logger.warning("port %d is taken: ZooKeeper listens on %d", preferred, chosen)
                return chosen
    raise StartFailedError(f"the system has no free port on {host}")


def _wait_until_serving(child: _Child, host: str, port: int, deadline: float) -> bool:
    """Wait until `child` itself serves on `port`; False when it ended or the deadline passed."""
    while time.monotonic() < deadline:
        # Whoever answers on the port might be a stranger, so the socket must belong to the child.
        if "Mode:" in four_letter_word("srvr", port, host) and _listens(child.pid, port):
            return True
        if child.exited.wait(_POLL_S):
            return False
    return False


def _listens(pid: int, port: int) -> bool:
    try:
        connections = psutil.Process(pid).net_connections(kind="tcp4")
    except psutil.NoSuchProcess:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port for c in connections)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a private server in the foreground until SIGINT or SIGTERM; print its connection string on one line."""
    parser = argparse.ArgumentParser(prog="python -m jobserver.local_zookeeper", description=main.__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="where data, configuration and log are kept")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="preferred port, 0: any (default %(default)s)")
    parser.add_argument("--heap-mb", type=int, default=128, help="upper bound of the Java heap (default %(default)s)")
    options = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        with LocalZooKeeper(options.data_dir, options.port, heap_mb=options.heap_mb) as server:
            print(server.hosts, flush=True)
            exit_code = server.wait()
            raise StartFailedError(f"ZooKeeper ended with exit code {exit_code}; see {server.log_path}")
    except (LocalZooKeeperError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _leave(*_signal: object) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
