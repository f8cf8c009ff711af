"""Network namespaces: one for this process, with a switch, and one for each node, with a host name and a cable into it.

Invariant: none has a name, so the kernel removes all of them, with their interfaces, when the last process in them
ends, by whichever death; nothing is mounted and the machine's own network is not touched. A node is cut off at the
switch: its packets vanish, nobody is told, its own interface stays up.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence

CLONE_NEWNET = 0x40000000
PROGRAMS = ("ip", "nsenter", "unshare")
_SWITCH = "edl-switch"
_SUBNET = "10.77.0"
_COMMAND_TIMEOUT_S = 10.0


class NetworkError(Exception):
    """Raised when a network namespace cannot be made or changed."""


def missing() -> str | None:
    """What is missing for network namespaces here, as a phrase; None if nothing is."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: iproute2, util-linux)"
    script = f"ip link add {_SWITCH} type bridge && ip link add v0 type veth peer name v1"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    return f"needs bridges and veth pairs: {tried.stderr.strip()}" if tried.returncode else None


class Network:
    """The switch, in the namespace of the calling thread, and the nodes that hang on it. See `private`."""

    def __init__(self) -> None:
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        #: node -> its address and the name of its socket at the switch
        self._cables: dict[str, tuple[str, str]] = {}
        #: of this process, for the nodes
        self.address = f"{_SUBNET}.1"
        _ip("link", "set", "lo", "up")
        _ip("link", "add", _SWITCH, "type", "bridge")
        _ip("address", "add", f"{self.address}/24", "dev", _SWITCH)
        _ip("link", "set", _SWITCH, "up")

    def add(self, node: str) -> str:
        """A namespace for `node`; its address. The same again for a node that is there."""
        if node in self._nodes:
            return self._cables[node][0]
        number = len(self._nodes) + 1
        address, port = f"{_SUBNET}.{10 + number}", f"edl-node{number}"
        # It ends when we close its input, or die; its first line says that the namespaces are there. The host name is
        # the address: Horovod's process sets listen where the host name leads, not at HOROVOD_GLOO_IFACE.
        script = f"echo {address} > /proc/sys/kernel/hostname && echo && exec cat"
        command = ["unshare", "--net", "--uts", "sh", "-c", script]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert holder.stdout is not None
        with holder.stdout as said:
            said.readline()
        self._nodes[node] = holder
        self._cables[node] = address, port
        _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        _ip("link", "set", port, "master", _SWITCH)
        _ip("link", "set", port, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            _run(self.inside(node, ["ip", *words]))
        return address

    def inside(self, node: str, command: Sequence[str]) -> list[str]:
        """`command` as it runs in the namespace of `node`; it keeps its process id."""
        return ["nsenter", "--target", str(self._nodes[node].pid), "--net", "--uts", *command]

    def cut(self, node: str) -> None:
        """From now on no packet comes to or from `node`."""
        _ip("link", "set", self._cables[node][1], "nomaster")

    def heal(self, node: str) -> None:
        _ip("link", "set", self._cables[node][1], "master", _SWITCH)

    def close(self) -> None:
        """Let go of the namespaces; those of processes that still run live on."""
        for holder in self._nodes.values():
            assert holder.stdin is not None
            holder.stdin.close()
            holder.wait()
        self._nodes.clear()


@contextlib.contextmanager
def private() -> Iterator[Network]:
    """A network of its own for the calling thread, and for the processes and threads that it starts in the block.

    Raises NetworkError; `missing` says beforehand what that would be for.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET):
            raise NetworkError(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            network = Network()
            try:
                yield network
            finally:
                network.close()
        finally:
            if libc.setns(before, CLONE_NEWNET):
                raise NetworkError(f"cannot go back to the network of before: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(before)


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMMAND_TIMEOUT_S)
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")
