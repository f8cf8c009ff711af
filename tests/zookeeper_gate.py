"""A door in front of ZooKeeper: while it is shut no byte passes, and ZooKeeper forgets who does not speak.

So the sessions of all clients end at the server, though it lives and though nobody closed a connection: what a network
that drops packets does. (A server that is stopped by SIGSTOP wakes up to the pings that waited for it, and often
expires nobody.)
"""

import socket
import threading
from contextlib import suppress


class ZooKeeperGate:
    """Clients connect to `hosts`; what they say is passed on to the server at `target` ("host:port")."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._lock = threading.Lock()
        self._shut = False
        self._sockets: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="zookeeper-gate", daemon=True)
        self._thread.start()

    @property
    def hosts(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def shut(self) -> None:
        """From now on nothing passes; connections stay open and can be opened."""
        with self._lock:
            self._shut = True

    def open(self) -> None:
        """Let everything pass again; what was connected while the door was shut has to connect anew."""
        with self._lock:
            if self._shut:
                self._shut = False
                self._drop_all()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends accept()
        self._listener.close()
        self._thread.join()
        with self._lock:
            self._drop_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._lock:
                self._sockets.add(client)
                shut = self._shut
            if not shut:
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, timeout=60)
        except OSError:
            self._drop(client)
            return
        server.settimeout(None)
        with self._lock:
            self._sockets.add(server)
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pass, args=(source, sink), name="zookeeper-gate-pump", daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    shut = self._shut
                if not shut:
                    sink.sendall(data)
        self._drop(source)
        self._drop(sink)

    def _drop(self, one: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(one)
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()

    def _drop_all(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # its pump closes it; one without a pump was never read
            one.close()
        self._sockets.clear()
