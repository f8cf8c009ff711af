"""A real HDFS on this machine: one NameNode and some DataNodes in a directory of its own, for tests and trials.

    python scripts/local_hdfs.py up --dir DIR      prints the URL; Ctrl-C stops it
    python scripts/local_hdfs.py fetch             fills the cache only

The jars come from hadoop_jars.py and are kept in ${EDL_CACHE_DIR:-~/.cache/edl}. From another program, import it with
scripts/ on the path, and start it from a thread that lives as long: a JVM dies with the thread that started it.

Invariants: everything listens on 127.0.0.1; no JVM outlives the process that started it. It proves the protocol of
Hadoop 2, not Hadoop 3, high availability or Kerberos.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hadoop_jars import LocalHdfsError, Say, default_cache_dir, fetch_hadoop, run_tool

JAVA_FLAGS = (
    "-Xmx192m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.net.preferIPv4Stack=true",
    "-Djava.security.egd=file:/dev/./urandom",
    "-XX:-UsePerfData",
)
NAMENODE = "org.apache.hadoop.hdfs.server.namenode.NameNode"
DATANODE = "org.apache.hadoop.hdfs.server.datanode.DataNode"
DFSADMIN = "org.apache.hadoop.hdfs.tools.DFSAdmin"
WEB_XML = '<web-app version="2.4" xmlns="http://java.sun.com/xml/ns/j2ee"></web-app>\n'
LOG4J = """log4j.rootLogger=WARN,out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.target=System.err
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d{ISO8601} %p %c: %m%n
log4j.logger.org.apache.hadoop.hdfs.server.datanode.DataNode=INFO
"""
POLL_S = 0.1


class PortTaken(LocalHdfsError):
    """Raised when another process took a port between our choice and its use."""


class _Jvm:
    """A Java process that dies with us."""

    def __init__(self, main: str, class_path: str, log: Path, arguments: tuple[str, ...] = ()) -> None:
        self.main = main.rpartition(".")[2]
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                ["java", *JAVA_FLAGS, "-cp", class_path, main, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=log.parent,
                preexec_fn=_die_with_parent,
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop them in order
            )

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def check(self) -> None:
        """Raise if it has ended by itself."""
        if self.process.poll() is not None:
            text = self.log.read_text(errors="replace")
            tail = "\n".join(text.splitlines()[-15:])
            kind = PortTaken if "BindException" in text else LocalHdfsError
            raise kind(f"{self.main} ended with code {self.process.returncode}; {self.log} ends:\n{tail}")


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class LocalHdfs:
    """A NameNode and some DataNodes below one directory.

    Args:
        base_dir: data, configuration and logs; made if it is not there, formatted if it is new.
        cache_dir: where the jars are kept; None is `default_cache_dir()`.
        datanodes: how many DataNodes; two let one be killed in mid-write.
        say: where progress goes, by default standard error.
        settings: more lines of hdfs-site.xml, for the NameNode and the DataNodes.
    """

    def __init__(
        self,
        base_dir: str | Path,
        cache_dir: str | Path | None = None,
        datanodes: int = 2,
        say: Say | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        if datanodes < 1:
            raise ValueError(f"datanodes must be at least 1; it is {datanodes}")
        self.base_dir = Path(base_dir).absolute()
        self._cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
        self._count = datanodes
        self._say = say or _say_to_stderr
        self._settings = dict(settings or {})
        self._namenode: _Jvm | None = None
        self._datanodes: list[_Jvm] = []
        self._class_path = ""
        self._rpc_port = self._http_port = 0

    @property
    def url(self) -> str:
        """hdfs://127.0.0.1:PORT"""
        return f"hdfs://127.0.0.1:{self._rpc_port}"

    @property
    def webhdfs_url(self) -> str:
        """webhdfs://127.0.0.1:PORT"""
        return f"webhdfs://127.0.0.1:{self._http_port}"

    def __enter__(self) -> LocalHdfs:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout_s: float = 60.0) -> None:
        """Fetch what is missing, start everything, and return when files can be written.

        Raises:
            LocalHdfsError: if Java is missing, or it is not ready in time; a lost race for a port is retried once.
        """
        if shutil.which("java") is None:
            raise LocalHdfsError("java is missing: apt-get install default-jre-headless")
        self._class_path = f"{self._webapps()}:{fetch_hadoop(self._cache_dir, self._say)}/*"
        try:
            try:
                self._start_all(timeout_s)
            except PortTaken:
                self.stop()
                self._say("a port was taken meanwhile; trying once more with others")
                self._start_all(timeout_s)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process; the data stays."""
        for jvm in [*self._datanodes, *([self._namenode] if self._namenode else [])]:
            jvm.kill()
        self._datanodes, self._namenode = [], None

    def kill_datanode(self, index: int) -> None:
        """SIGKILL one DataNode; the NameNode notices after some 11 s."""
        self._datanodes[index].kill()

    def kill_namenode(self) -> None:
        """SIGKILL the NameNode."""
        assert self._namenode is not None, "start() comes first"
        self._namenode.kill()

    def restart_namenode(self, timeout_s: float = 60.0) -> None:
        """Start the NameNode again on its port, and wait until it serves."""
        self.kill_namenode()
        alive = sum(jvm.process.poll() is None for jvm in self._datanodes)
        self._namenode = self._start_jvm(NAMENODE, "namenode")
        self._wait_ready(alive, timeout_s)

    def restart_datanode(self, index: int, timeout_s: float = 60.0) -> None:
        """Start a DataNode again on its ports, and wait until the NameNode has it."""
        self.kill_datanode(index)
        jvm = self._datanodes[index] = self._start_jvm(DATANODE, f"datanode{index}")
        deadline = time.monotonic() + timeout_s
        # The NameNode still counts the dead one as live, so only the new one's own word tells.
        while "Successfully sent block report" not in jvm.log.read_text(errors="replace"):
            jvm.check()
            if time.monotonic() > deadline:
                raise LocalHdfsError(f"DataNode {index} was not ready after {timeout_s:.0f} s; see {jvm.log}")
            time.sleep(POLL_S)

    def set_safe_mode(self, on: bool) -> None:
        """Enter or leave safe mode, as an administrator does."""
        self._administer("-safemode", "enter" if on else "leave")

    def set_quota(self, path: str, names: int | None = None, space_bytes: int | None = None) -> None:
        """Limit how many names a folder may hold, itself included, and the bytes of all replicas of its blocks."""
        if names is not None:
            self._administer("-setQuota", str(names), path)
        if space_bytes is not None:
            self._administer("-setSpaceQuota", str(space_bytes), path)

    def _administer(self, *arguments: str) -> None:
        run_tool(["java", *JAVA_FLAGS, "-cp", self._classes("namenode"), DFSADMIN, *arguments], self.base_dir)

    def _start_all(self, timeout_s: float) -> None:
        ports = _free_ports(2 + 3 * self._count)
        self._rpc_port, self._http_port = ports[:2]
        self._write_config("namenode", {})
        if not (self.base_dir / "name/current").exists():
            self._say("formatting a new HDFS")
            log = self.base_dir / "format.log"
            arguments = ("-format", "-force", "-nonInteractive")
            if _Jvm(NAMENODE, self._classes("namenode"), log, arguments).process.wait() != 0:
                raise LocalHdfsError(f"formatting failed; see {log}")
        self._say(f"starting a NameNode and {self._count} DataNodes")
        self._namenode = self._start_jvm(NAMENODE, "namenode")
        for index in range(self._count):
            self._write_config(f"datanode{index}", self._datanode_config(index, ports[2 + 3 * index :][:3]))
            self._datanodes.append(self._start_jvm(DATANODE, f"datanode{index}"))
        self._wait_ready(self._count, timeout_s)
        self._say(f"HDFS is ready at {self.url}")

    def _start_jvm(self, main: str, name: str) -> _Jvm:
        log = self.base_dir / f"{name}.log"
        log.unlink(missing_ok=True)
        return _Jvm(main, self._classes(name), log)

    def _classes(self, name: str) -> str:
        return f"{self.base_dir / 'conf' / name}:{self._class_path}"

    def _wait_ready(self, datanodes: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            for jvm in [*self._datanodes, *([self._namenode] if self._namenode else [])]:
                if jvm.process.returncode != -signal.SIGKILL:  # one that was killed on purpose is no surprise
                    jvm.check()
            state = self._namesystem_state()
            if state.get("FSState") == "Operational" and state.get("NumLiveDataNodes", 0) >= datanodes:
                return
            if time.monotonic() > deadline:
                raise LocalHdfsError(f"HDFS was not ready after {timeout_s:.0f} s ({state or 'no answer'})")
            time.sleep(POLL_S)

    def _namesystem_state(self) -> dict[str, Any]:
        query = f"http://127.0.0.1:{self._http_port}/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState"
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(query, timeout=5) as answer:
                beans: list[dict[str, Any]] = json.load(answer)["beans"]
        except (OSError, ValueError, KeyError):
            return {}  # not up yet; the deadline decides
        return beans[0] if beans else {}

    def _webapps(self) -> Path:
        root = self.base_dir / "classes"
        for app in ("hdfs", "datanode"):
            (root / "webapps" / app / "WEB-INF").mkdir(parents=True, exist_ok=True)
            (root / "webapps" / app / "WEB-INF/web.xml").write_text(WEB_XML)
        return root

    def _write_config(self, name: str, extra: dict[str, object]) -> None:
        folder = self.base_dir / "conf" / name
        folder.mkdir(parents=True, exist_ok=True)
        core = {"fs.defaultFS": self.url, "hadoop.tmp.dir": self.base_dir / "tmp" / name}
        hdfs = {
            "dfs.replication": min(2, self._count),
            "dfs.webhdfs.enabled": "true",
            "dfs.namenode.name.dir": f"file://{self.base_dir / 'name'}",
            "dfs.namenode.http-address": f"127.0.0.1:{self._http_port}",
            "dfs.namenode.rpc-bind-host": "127.0.0.1",
            "dfs.namenode.datanode.registration.ip-hostname-check": "false",
            "dfs.namenode.safemode.extension": 0,
            "dfs.namenode.safemode.min.datanodes": 1,
            "dfs.namenode.edits.noeditlogchannelflush": "true",  # a test's data need not survive a power cut
            "dfs.namenode.fs-limits.min-block-size": 4096,
            "dfs.heartbeat.interval": 1,
            "dfs.namenode.heartbeat.recheck-interval": 1000,
            "dfs.namenode.replication.interval": 1,
            "dfs.datanode.directoryscan.throttle.limit.ms.per.sec": 1000,
            **self._settings,
            **extra,
        }
        (folder / "core-site.xml").write_text(_xml(core))
        (folder / "hdfs-site.xml").write_text(_xml(hdfs))
        (folder / "log4j.properties").write_text(LOG4J)

    def _datanode_config(self, index: int, ports: list[int]) -> dict[str, object]:
        data, http, ipc = (f"127.0.0.1:{port}" for port in ports)
        return {
            "dfs.datanode.data.dir": f"file://{self.base_dir / f'data{index}'}",
            "dfs.datanode.address": data,
            "dfs.datanode.http.address": http,
            "dfs.datanode.ipc.address": ipc,
        }


def _xml(values: dict[str, object]) -> str:
    rows = "".join(f"<property><name>{k}</name><value>{v}</value></property>\n" for k, v in values.items())
    return f'<?xml version="1.0"?>\n<configuration>\n{rows}</configuration>\n'


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; another process may take one before we do.

    They lie below the range from which the kernel takes the ports of outgoing connections.
    """
    taken: list[socket.socket] = []
    try:
        while len(taken) < count:
            candidate = socket.socket()
            try:
                candidate.bind(("127.0.0.1", random.randint(20_000, 32_000)))
            except OSError:
                candidate.close()
            else:
                taken.append(candidate)
        return [int(each.getsockname()[1]) for each in taken]
    finally:
        for each in taken:
            each.close()


def _say_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="A real HDFS on this machine, for tests and trials.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start it, print its URL, run until Ctrl-C")
    up.add_argument("--dir", required=True, help="data, configuration and logs")
    up.add_argument("--datanodes", type=int, default=2)
    fetch = commands.add_parser("fetch", help="fill the cache only")
    for command in (up, fetch):
        command.add_argument("--cache-dir", default=None, help="default: ${EDL_CACHE_DIR:-~/.cache/edl}")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if arguments.command == "fetch":
            fetch_hadoop(Path(arguments.cache_dir or default_cache_dir()), _say_to_stderr)
            return 0
        with LocalHdfs(arguments.dir, arguments.cache_dir, arguments.datanodes) as cluster:
            print(cluster.url, flush=True)
            print(cluster.webhdfs_url, flush=True)
            signal.pause()
    except (LocalHdfsError, ValueError) as error:
        print(f"local_hdfs: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
