"""The driver's connections to the JobClients, and the rendezvous keys it passes between them.

Keys belong to one generation and are forgotten with it. What arrives within FLUSH_S is encoded once and sent to all
nodes together: a rendezvous of N workers makes about 6 N^2 requests, but the driver sees only a few messages per node.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping

from edl_collective.driver import wire
from edl_collective.driver.state import Disconnected, Event, Said
from edl_collective.messages import DriverMessage, Need, NodeHello, ProxyMessage, Puts, Table

logger = logging.getLogger(__name__)

FLUSH_S = 0.002
#: keys in one message: well under wire.MAX_FRAME_BYTES
MAX_TABLE_BYTES = 4 * 1024 * 1024
BACKLOG = 1024

Keys = dict[str, dict[str, bytes]]


def chunks(puts: Mapping[str, Mapping[str, bytes]]) -> Iterator[Keys]:
    """`puts` in parts of at most MAX_TABLE_BYTES (or one key, if that is larger)."""
    part: Keys = {}
    size = 0
    for scope, keys in puts.items():
        for key, value in keys.items():
            if size and size + len(value) > MAX_TABLE_BYTES:
                yield part
                part, size = {}, 0
            part.setdefault(scope, {})[key] = value
            size += len(value) + len(key)
    if part:
        yield part


class Tables:
    """The keys of one generation, and which of them were not passed on yet."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self._known: Keys = {}
        self._unsent: Keys = {}
        self._from: set[str] = set()

    def put(self, node: str, generation: int, puts: Mapping[str, Mapping[str, bytes]]) -> bool:
        """Keep keys that `node` says; whether any has to be passed on. Keys of another generation are ignored."""
        if generation != self.generation:
            return False
        for scope, keys in puts.items():
            known = self._known.setdefault(scope, {})
            for key, value in keys.items():
                if known.get(key) != value:
                    known[key] = value
                    self._unsent.setdefault(scope, {})[key] = value
                    self._from.add(node)
        return bool(self._unsent)

    def take(self) -> tuple[Keys, set[str]]:
        """The keys to pass on and the nodes that said them."""
        unsent, origins = self._unsent, self._from
        self._unsent, self._from = {}, set()
        return unsent, origins

    def find(self, need: Need) -> Keys:
        """Those of the needed keys that are known."""
        if need.generation != self.generation:
            return {}
        found = {
            scope: {key: self._known[scope][key] for key in keys if key in self._known.get(scope, {})}
            for scope, keys in need.keys.items()
        }
        return {scope: keys for scope, keys in found.items() if keys}


class Relay:
    """Listens for the proxies of a job; what they say about workers goes to `tell` as events."""

    def __init__(self, key: bytes, epoch: int, generation: int, tell: Callable[[Event], None]) -> None:
        self._key, self._epoch, self._tell = key, epoch, tell
        self._tables = Tables(generation)
        self._nodes: dict[str, wire.Channel[ProxyMessage]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._flush: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None

    async def start(self, host: str) -> int:
        """Listen on `host`; returns the port. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, 0, backlog=BACKLOG)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._flush is not None:
            self._flush.cancel()
        for channel in self._nodes.values():
            channel.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin(self, generation: int) -> None:
        """A generation has been written: its keys take the place of the former's."""
        self._tables = Tables(generation)

    def send(self, node: str, message: DriverMessage) -> None:
        """Queue `message` for `node`; dropped if it is not connected, since its next hello says what it lacks."""
        if node in self._nodes:
            self._nodes[node].send(message)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            channel = await wire.accept(reader, writer, self._key, self._epoch)
            await self._converse(channel)
        except wire.Closed:
            logger.debug("a proxy has closed its connection")
        except wire.WireError as error:
            logger.warning("refused %s: %s", writer.get_extra_info("peername"), error)
        except asyncio.CancelledError:
            logger.debug("closing: %s", writer.get_extra_info("peername"))  # raised, asyncio would print it as an error
        finally:
            writer.transport.abort()

    async def _converse(self, channel: wire.Channel[ProxyMessage]) -> None:
        hello = await channel.receive()
        if not isinstance(hello, NodeHello):
            raise wire.FrameError(f"the first message is a {type(hello).__name__}, not a NodeHello")
        node = hello.node
        if node in self._nodes:
            self._nodes[node].abort()  # a half-open connection from before: the newest one counts
        self._nodes[node] = channel
        try:
            self._hear(node, hello)
            while True:
                message = await channel.receive()
                if self._nodes.get(node) is not channel:
                    return
                self._hear(node, message)
        finally:
            if self._nodes.get(node) is channel:
                del self._nodes[node]
                self._tell(Disconnected(node))

    def _hear(self, node: str, message: ProxyMessage) -> None:
        match message:
            case Puts(generation=generation, puts=puts):
                self._put(node, generation, puts)
            case Need():
                for part in chunks(self._tables.find(message)):
                    self.send(node, Table(generation=message.generation, puts=part))
            case NodeHello(generation=generation, puts=puts):
                self._put(node, generation, puts)
                self._tell(Said(node, message))
            case _:
                self._tell(Said(node, message))

    def _put(self, node: str, generation: int, puts: Keys) -> None:
        if self._tables.put(node, generation, puts) and self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_S, self._pass_on)

    def _pass_on(self) -> None:
        self._flush = None
        unsent, origins = self._tables.take()
        others = [channel for node, channel in self._nodes.items() if origins != {node}]
        if not others:
            return
        for part in chunks(unsent):
            body = wire.encode(Table(generation=self._tables.generation, puts=part))
            for channel in others:
                channel.send_body(body)
