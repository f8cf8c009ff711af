"""Notices at once that a process which serves a port has died, instead of waiting for the end of its session.

A process is dead for certain when a connection to it breaks and the next one is refused: its kernel is there and says
that nobody listens any more. Silence proves nothing (a network, a machine that stands still): then the session
time-out decides. What was never connected is never found dead, so a firewall that refuses buries nobody.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

logger = logging.getLogger(__name__)

#: between two tries to connect
RETRY_S = 0.5
CONNECT_TIMEOUT_S = 5.0


class Endpoint(NamedTuple):
    host: str
    port: int


class DeathWatch:
    """Watches the endpoints that it was last told to follow, from a thread of its own.

    wake: called from that thread after somebody was found dead. Names are the caller's, one for each life of a process.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._dead: frozenset[Hashable] = frozenset()
        self._wanted: Mapping[Hashable, Endpoint] = {}
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def dead(self) -> frozenset[Hashable]:
        """Those of the followed that died."""
        with self._lock:
            return self._dead

    def follow(self, endpoints: Mapping[Hashable, Endpoint]) -> None:
        """From now on watch these and no others; returns at once."""
        with self._lock:
            if endpoints == self._wanted:
                return
            self._wanted = dict(endpoints)
            self._dead &= endpoints.keys()
            loop = self._start()
        loop.call_soon_threadsafe(self._adjust)

    def forget(self, name: Hashable) -> None:
        """What was found about `name` has been acted upon: whoever is followed by that name from now on is not dead."""
        with self._lock:
            self._dead -= {name}
            self._wanted = {other: endpoint for other, endpoint in self._wanted.items() if other != name}

    def close(self) -> None:
        """End the thread; harmless when nothing was ever followed."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
            self._wanted = {}
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _start(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name="edl-death-watch", daemon=True)
            self._thread.start()
        return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        loop.run_until_complete(self._cancel_all())
        loop.close()

    async def _cancel_all(self) -> None:
        """Also those that `_adjust` has cancelled and that have not closed their connections yet."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # for the transports that they aborted

    def _adjust(self) -> None:
        with self._lock:
            wanted = {name: endpoint for name, endpoint in self._wanted.items() if name not in self._dead}
        for name in self._tasks.keys() - wanted.keys():
            self._tasks.pop(name).cancel()
        for name in wanted.keys() - self._tasks.keys():
            self._tasks[name] = asyncio.get_running_loop().create_task(self._watch(name, wanted[name]))

    async def _watch(self, name: Hashable, endpoint: Endpoint) -> None:
        known: Endpoint | None = None  # the address that answered: a name may have several, and others later
        while True:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    reader, writer = await asyncio.open_connection(*(known or endpoint))
            except ConnectionRefusedError:
                if known is not None:
                    self._found_dead(name, known)
                    return
            except OSError as error:  # TimeoutError is one: silence proves nothing
                logger.debug("%s: %s", endpoint, error)
            else:
                peer = writer.get_extra_info("peername")  # None if it is broken already
                known = Endpoint(*peer[:2]) if peer else known or endpoint
                await _until_broken(reader, writer)
                continue
            await asyncio.sleep(RETRY_S)

    def _found_dead(self, name: Hashable, endpoint: Endpoint) -> None:
        logger.warning("nobody listens at %s:%d any more: %s has died", endpoint.host, endpoint.port, name)
        self._tasks.pop(name, None)  # this one ends: followed again after it was forgotten, the name gets another
        with self._lock:
            if name not in self._wanted:
                return
            self._dead |= {name}
        self._wake()


async def _until_broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the other side ends the connection. One that is ended as soon as it is made costs no busy loop."""
    begun_s = asyncio.get_running_loop().time()
    try:
        with contextlib.suppress(ConnectionError):
            while await reader.read(4096):
                pass
    finally:
        writer.transport.abort()
    if asyncio.get_running_loop().time() < begun_s + RETRY_S:
        await asyncio.sleep(RETRY_S)
