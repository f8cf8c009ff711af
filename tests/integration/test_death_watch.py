"""A process that dies is found dead at once; one that is silent, or was never seen alive, is not."""

import gc
import socket
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from jobserver.death_watch import DeathWatch, Endpoint

pytestmark = pytest.mark.integration

#: a wait in which what must not happen would have happened
WHILE_S = 1.5
#: for what must happen
WAIT_S = 60.0


class Listener:
    """Something that serves a port and holds what connects."""

    def __init__(self, port: int = 0) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self._connections: list[socket.socket] = []

    def accept(self) -> None:
        self._socket.settimeout(WAIT_S)
        self._connections.append(self._socket.accept()[0])

    def hang_up(self) -> None:
        while self._connections:
            self._connections.pop().close()

    def die(self) -> None:
        self._socket.close()
        self.hang_up()


class Watching:
    def __init__(self) -> None:
        self.woken = threading.Event()
        self.watch = DeathWatch(self.woken.set)

    def follow(self, **ports: int) -> None:
        self.watch.follow({name: Endpoint("127.0.0.1", port) for name, port in ports.items()})


@pytest.fixture
def watching() -> Iterator[Watching]:
    found = Watching()
    yield found
    found.watch.close()


def test_who_dies_is_found_dead_at_once_and_nobody_else(watching: Watching) -> None:
    dying, living = Listener(), Listener()
    watching.follow(dying=dying.port, living=living.port)
    dying.accept()
    living.accept()
    dying.die()
    assert watching.woken.wait(WAIT_S)
    assert watching.watch.dead == {"dying"}
    watching.follow(living=living.port)
    assert watching.watch.dead == frozenset()
    living.die()


def test_a_connection_that_breaks_is_made_again(watching: Watching) -> None:
    listener = Listener()
    watching.follow(it=listener.port)
    listener.accept()
    listener.hang_up()
    listener.accept()
    assert watching.watch.dead == frozenset()
    listener.die()
    assert watching.woken.wait(WAIT_S)


def test_who_is_back_after_it_was_forgotten_lives_and_is_watched_again(watching: Watching) -> None:
    first = Listener()
    watching.follow(it=first.port)
    first.accept()
    first.die()
    assert watching.woken.wait(WAIT_S)
    watching.woken.clear()
    watching.watch.forget("it")
    again = Listener(first.port)
    watching.follow(it=again.port)
    assert watching.watch.dead == frozenset()
    again.accept()
    again.die()
    assert watching.woken.wait(WAIT_S)
    assert watching.watch.dead == {"it"}


def test_who_has_a_name_with_two_addresses_is_found_dead_too(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def two_addresses(host: str, *arguments: Any, **options: Any) -> list[Any]:
        hosts = ("127.0.0.2", "127.0.0.1") if host == "two.test" else (host,)
        return [found for one in hosts for found in real(one, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    listener = Listener()
    watching.watch.follow({"it": Endpoint("two.test", listener.port)})
    listener.accept()
    listener.die()
    assert watching.woken.wait(WAIT_S)
    assert watching.watch.dead == {"it"}


def test_who_was_never_connected_is_not_found_dead(watching: Watching) -> None:
    gone = Listener()
    gone.die()
    watching.follow(it=gone.port)
    assert not watching.woken.wait(WHILE_S)
    assert watching.watch.dead == frozenset()
    late = Listener(gone.port)
    late.accept()  # it is tried again and again
    late.die()
    assert watching.woken.wait(WAIT_S)


def test_a_watch_that_follows_nobody_ends() -> None:
    DeathWatch(lambda: None).close()


def test_a_watch_that_ends_leaves_no_connection_open() -> None:
    """Nor does it when it was told a moment before that nobody is to be followed any more."""
    listener = Listener()
    for _ in range(5):
        watching = Watching()
        watching.follow(it=listener.port)
        listener.accept()
        watching.follow()
        watching.watch.close()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            del watching
            gc.collect()
        assert said == []
    listener.die()
