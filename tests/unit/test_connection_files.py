"""Requests whose parts lie in files: sent whole and in order, on sockets that take little, and dropped when closed."""

import os
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from distill.connection import EVENTS, Connection, InFile
from distill.errors import TeacherUnavailable

LARGE = 3 << 20
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def file() -> Iterator[tuple[int, memoryview]]:
    """A file of random bytes and a view of them."""
    fd = os.memfd_create("test")
    content = os.urandom(LARGE)
    os.write(fd, content)
    yield fd, memoryview(content)
    os.close(fd)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def ask(connection: Connection) -> bytes:
    """Drive a connection until its answer is there."""
    with select.epoll() as poll:
        poll.register(connection.fileno(), EVENTS)
        while True:
            assert poll.poll(30), "nothing happens any more"
            answer = connection.ready()
            if answer is not None:
                return bytes(answer.body)


def serve(listener: socket.socket, size: int, got: bytearray, requests: int) -> None:
    """Read `requests` requests of `size` bytes and answer each."""
    peer, _ = listener.accept()
    with peer:
        for _ in range(requests):
            for _ in range(size):
                data = peer.recv(size - len(got) % size)
                assert data
                got += data
                if len(got) % size == 0:
                    break
            peer.sendall(ANSWER)


def test_parts_in_a_file_and_in_memory_arrive_in_order(file: tuple[int, memoryview], listener: socket.socket) -> None:
    fd, content = file
    cut = 200_001  # not at a page
    parts: list[bytes | memoryview | InFile] = [
        b"head",
        InFile(content[cut:], fd, cut),
        b"middle",
        InFile(content[:5], fd, 0),
        InFile(content, fd, 0),
    ]
    expected = b"head" + content[cut:] + b"middle" + content[:5] + bytes(content)
    got = bytearray()
    server = threading.Thread(target=serve, args=(listener, len(expected), got, 2))
    server.start()
    connection = Connection(listener.getsockname())
    for _ in range(2):
        connection.request(parts)
        assert ask(connection) == b"ok"
    server.join()
    assert bytes(got) == expected * 2
    connection.close()


def test_a_request_that_is_dropped_is_not_sent_to_its_end(
    file: tuple[int, memoryview], listener: socket.socket
) -> None:
    fd, content = file
    connection = Connection(listener.getsockname())
    connection.request([InFile(content, fd, 0)] * 16)
    peer, _ = listener.accept()
    with peer:
        send_what_fits(connection)
        connection.close()
        with pytest.raises(ConnectionResetError):
            read_all(peer)


def send_what_fits(connection: Connection) -> None:
    with select.epoll() as poll:
        poll.register(connection.fileno(), EVENTS)
        while poll.poll(0.2):
            assert connection.ready() is None


def read_all(peer: socket.socket) -> None:
    while peer.recv(1 << 20):
        pass


def test_a_peer_that_goes_breaks_the_request(file: tuple[int, memoryview], listener: socket.socket) -> None:
    fd, content = file
    connection = Connection(listener.getsockname())
    connection.request([InFile(content, fd, 0)] * 16)
    peer, _ = listener.accept()
    send_what_fits(connection)
    peer.close()
    with pytest.raises(TeacherUnavailable, match="broke off"):
        ask(connection)
    connection.close()
