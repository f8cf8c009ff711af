"""The abort switch, on real sockets: what it cuts, and everything that it must leave alone."""

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from edl_collective.abort import AbortSwitch, inside_horovod


def connect(*, timeout: bool) -> tuple[socket.socket, socket.socket]:
    """A TCP connection; with `timeout` it looks like one of gloo's: only our end has a receive time-out."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    if timeout:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 30, 0))
    return ours, theirs


@pytest.fixture
def connections() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def open_apart(stack: contextlib.ExitStack) -> socket.socket:
    ours, theirs = connect(timeout=True)
    stack.enter_context(theirs)
    return stack.enter_context(ours)


def open_during_init(switch: AbortSwitch, stack: contextlib.ExitStack, *, timeout: bool = True) -> socket.socket:
    switch.begin_init()
    ours, theirs = connect(timeout=timeout)
    stack.enter_context(ours)
    stack.enter_context(theirs)
    return ours


def is_shut(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False


def test_abort_shuts_what_init_opened(connections: contextlib.ExitStack) -> None:
    switch = AbortSwitch()
    gloo = open_during_init(switch, connections)
    switch.arm(3)
    switch.abort(3)
    assert is_shut(gloo)


def test_an_abort_during_init_waits_for_its_end(connections: contextlib.ExitStack) -> None:
    switch = AbortSwitch()
    gloo = open_during_init(switch, connections)
    switch.abort(3)
    assert not is_shut(gloo)
    switch.arm(3)
    assert is_shut(gloo)


@pytest.mark.parametrize("aborted", [1, 2])
def test_an_abort_of_an_older_generation_does_nothing(connections: contextlib.ExitStack, aborted: int) -> None:
    switch = AbortSwitch()
    gloo = open_during_init(switch, connections)
    switch.arm(3)
    switch.abort(aborted)
    assert not is_shut(gloo)


def test_nothing_is_shut_once_shutdown_began(connections: contextlib.ExitStack) -> None:
    switch = AbortSwitch()
    gloo = open_during_init(switch, connections)
    switch.arm(3)
    switch.disarm()
    switch.abort(3)
    assert not is_shut(gloo)


def test_other_connections_are_left_alone(connections: contextlib.ExitStack) -> None:
    switch = AbortSwitch()
    before = open_apart(connections)
    meanwhile = open_during_init(switch, connections, timeout=False)
    switch.arm(3)
    after = open_apart(connections)
    switch.abort(3)
    assert not any(is_shut(connection) for connection in (before, meanwhile, after))


def test_a_descriptor_that_was_given_to_another_socket_is_left_alone(connections: contextlib.ExitStack) -> None:
    switch = AbortSwitch()
    gloo = open_during_init(switch, connections)
    switch.arm(3)
    fd = gloo.detach()
    reused, theirs = connect(timeout=True)
    connections.enter_context(theirs)
    with socket.socket(fileno=fd, family=socket.AF_INET, type=socket.SOCK_STREAM) as same_fd:
        os.dup2(reused.fileno(), fd)
        switch.abort(3)
        assert not is_shut(same_fd)
    reused.close()


def test_a_descriptor_that_was_given_to_a_file_is_left_alone_and_none_is_leaked(
    connections: contextlib.ExitStack,
) -> None:
    switch = AbortSwitch()
    gloo = open_during_init(switch, connections)
    switch.arm(3)
    fd = gloo.detach()
    try:
        with open(os.devnull, "rb") as file:
            os.dup2(file.fileno(), fd)
            before = len(os.listdir("/proc/self/fd"))
            switch.abort(3)
            assert len(os.listdir("/proc/self/fd")) == before
            assert os.fstat(fd).st_ino == os.fstat(file.fileno()).st_ino
    finally:
        os.close(fd)


@pytest.mark.parametrize(("file", "inside"), [("horovod/torch/mpi_ops.py", True), ("horovod_like/mpi_ops.py", False)])
def test_the_reading_thread_knows_where_the_main_thread_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, inside: bool
) -> None:
    module = ModuleType("horovod")
    module.__file__ = str(tmp_path / "horovod" / "__init__.py")
    monkeypatch.setitem(sys.modules, "horovod", module)
    assert not inside_horovod()

    def ask_elsewhere() -> bool:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(inside_horovod).result()

    scope: dict[str, Callable[[Callable[[], bool]], bool]] = {}
    exec(compile("def synchronize(wait):\n    return wait()\n", tmp_path / file, "exec"), scope)
    assert scope["synchronize"](ask_elsewhere) is inside
    monkeypatch.delitem(sys.modules, "horovod")
    assert not inside_horovod()
