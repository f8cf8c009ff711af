"""Several ZooKeeper servers on this machine that form one ensemble: to lose one of them in a test.

Each is a LocalZooKeeper with its invariants: it listens on 127.0.0.1 alone and never outlives this process. All on one
machine, they protect from nothing but what kills one process; production uses an ensemble on several machines.
"""

import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

from jobserver.four_letter_word import HOST, four_letter_word
from jobserver.local_zookeeper import LocalZooKeeper, LocalZooKeeperError

#: in ticks of 250 ms: how long a server may take to join, and how far it may lag behind
_LIMITS = "initLimit=40\nsyncLimit=20\n"


class _Ports(NamedTuple):
    client: int
    quorum: int
    election: int


class _Member(LocalZooKeeper):
    """Server `number` (from 0) of an ensemble at `ports`."""

    def __init__(self, data_dir: Path, number: int, ports: Sequence[_Ports], startup_timeout_s: float) -> None:
        super().__init__(data_dir, ports[number].client, startup_timeout_s=startup_timeout_s)
        self._number, self._ports = number, ports

    def _write_configuration(self, port: int) -> None:
        super()._write_configuration(port)
        servers = [f"server.{i + 1}={HOST}:{p.quorum}:{p.election}\n" for i, p in enumerate(self._ports)]
        with (self._dir / "zoo.cfg").open("a", encoding="ascii") as configuration:
            configuration.write(_LIMITS + "".join(servers))
        (self._dir / "data").mkdir(exist_ok=True)
        (self._dir / "data" / "myid").write_text(f"{self._number + 1}\n", encoding="ascii")


class LocalEnsemble:
    """`size` servers with their data below `data_dir`; each is named by its number from 0.

    startup_timeout_s: how long `start` waits until all of them serve.
    """

    def __init__(self, data_dir: Path, size: int = 3, *, startup_timeout_s: float = 30.0) -> None:
        if size < 3 or size % 2 == 0:
            raise ValueError(f"size is {size}: an ensemble that can lose a server has 3, 5, ... of them")
        ports = _free_ports(size)
        self._client_ports = [p.client for p in ports]
        self._members = [_Member(data_dir / str(i), i, ports, startup_timeout_s) for i in range(size)]

    @property
    def hosts(self) -> str:
        """The connection string for clients."""
        return ",".join(f"{HOST}:{port}" for port in self._client_ports)

    def start(self) -> str:
        """Start all servers and wait until they serve; returns `hosts`. Raises LocalZooKeeperError."""
        with ThreadPoolExecutor(len(self._members)) as pool:
            started = [pool.submit(member.start) for member in self._members]
        for number, (member, future) in enumerate(zip(self._members, started, strict=True)):
            if future.exception() is None and member.hosts != f"{HOST}:{self._client_ports[number]}":
                self.stop()
                raise LocalZooKeeperError(f"port {self._client_ports[number]} was taken meanwhile: start again")
        try:
            for future in started:
                future.result()
        except LocalZooKeeperError:
            self.stop()
            raise
        return self.hosts

    def leader(self) -> int:
        """Number of the server that leads. Raises LocalZooKeeperError while none does."""
        for number, port in enumerate(self._client_ports):
            if "Mode: leader" in four_letter_word("srvr", port):
                return number
        raise LocalZooKeeperError("no server of the ensemble leads at this moment")

    def kill(self, number: int) -> None:
        """End one server with SIGKILL, as a crash would; `restart` brings it back."""
        self._members[number].kill()

    def restart(self, number: int) -> None:
        """Start a server that was killed and wait until it has joined the others."""
        self._members[number].start()

    def stop(self) -> None:
        """End all servers. Harmless when they are not running."""
        with ExitStack() as stopping:  # whatever happens to one, the others are stopped
            for member in self._members:
                stopping.callback(member.stop)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.stop()


def _free_ports(size: int) -> list[_Ports]:
    """Ports that nobody has at this moment, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server((HOST, 0))) for _ in range(3 * size)]
        ports = [probe.getsockname()[1] for probe in sockets]
    return [_Ports(*ports[3 * i : 3 * i + 3]) for i in range(size)]
