"""Attacks on the connection between proxy and driver: nothing but the next frame of the right peer is accepted."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from edl_collective.coord.auth import ClusterKey
from edl_collective.driver import wire
from edl_collective.messages import AtGate, DriverMessage, Need, ProxyMessage, Puts, Table

KEY = wire.driver_key(ClusterKey(b"k" * 32), "job")
OTHER_KEY = wire.driver_key(ClusterKey(b"k" * 32), "other-job")

Mangle = Callable[[bytes], bytes]
Address = tuple[str, int]


class Line:
    """A driver and a proxy with somebody in between who may change what the proxy sends after the handshake."""

    def __init__(self, driver: wire.Channel[ProxyMessage], proxy: wire.Channel[DriverMessage]) -> None:
        self.driver, self.proxy = driver, proxy
        self.mangle: Mangle = lambda data: data


@contextlib.asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Address]:
    """A TCP server on a free port; at the end every connection it had is closed."""
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        await handle(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def calling(address: Address) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


class Acceptor:
    """The driver's side of one handshake."""

    def __init__(self, epoch: int = 1) -> None:
        self._epoch = epoch
        self.channel: asyncio.Future[wire.Channel[ProxyMessage]] = asyncio.get_running_loop().create_future()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.channel.set_result(await wire.accept(reader, writer, KEY, self._epoch))
        except wire.WireError as error:
            self.channel.set_exception(error)
            self.channel.exception()
            writer.close()


@contextlib.asynccontextmanager
async def line() -> AsyncIterator[Line]:
    accept = Acceptor()
    made: list[Line] = []

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, mangled: bool) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 20):
                    sink.write(made[0].mangle(data) if mangled and made else data)
                sink.close()

        async with calling(behind) as (up_reader, up_writer):
            await asyncio.gather(pump(reader, up_writer, True), pump(up_reader, writer, False))

    async with serving(accept) as behind, serving(between) as front:
        proxy = await wire.connect(*front, KEY, 1)
        made.append(Line(await accept.channel, proxy))
        try:
            yield made[0]
        finally:
            proxy.abort()


async def test_messages_arrive_in_order_both_ways() -> None:
    async with line() as ab:
        for last in range(5):
            ab.proxy.send(AtGate(worker="w1", last_generation=last))
        big = Table(generation=3, puts={"global": {"0": bytes(100_000)}})
        ab.driver.send(big)
        assert [await ab.driver.receive() for _ in range(5)] == [
            AtGate(worker="w1", last_generation=i) for i in range(5)
        ]
        assert await ab.proxy.receive() == big


async def test_a_peer_with_the_key_of_another_job_is_refused() -> None:
    async with serving(Acceptor()) as address:
        with pytest.raises(wire.HandshakeError, match="does not hold the key"):
            await wire.connect(*address, OTHER_KEY, 1)


async def test_a_driver_of_another_epoch_is_refused() -> None:
    async with serving(Acceptor(epoch=4)) as address:
        with pytest.raises(wire.HandshakeError, match="has epoch 4, not 5"):
            await wire.connect(*address, KEY, 5)


async def test_a_stranger_cannot_answer_the_challenge() -> None:
    accept = Acceptor()
    async with serving(accept) as address, calling(address) as (reader, writer):
        writer.write(b"EDLdrv1\n" + bytes(32))
        await reader.readexactly(8 + 32 + 8 + 32)
        writer.write(bytes(32))
        with pytest.raises(wire.HandshakeError, match="does not hold the key"):
            await accept.channel


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"EDLdrv1\n", b""], ids=["http", "half-open", "silent"]
)
async def test_what_never_finishes_the_handshake_is_cut_off(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HANDSHAKE_TIMEOUT_S", 0.05)
    accept = Acceptor()
    async with serving(accept) as address, calling(address) as (reader, writer):
        writer.write(said)
        with pytest.raises(wire.HandshakeError):
            await accept.channel
        assert await reader.read() == b"", "nothing was said to a stranger, and the connection is closed"


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("at", [4, 5, 8, -1], ids=["flags", "payload", "inside", "mac"])
async def test_a_changed_bit_is_refused(at: int) -> None:
    async with line() as ab:
        ab.mangle = lambda data: flip(data, at % len(data))
        ab.proxy.send(Need(generation=1))
        with pytest.raises(wire.FrameError):
            await ab.driver.receive()


async def test_a_repeated_frame_is_refused() -> None:
    async with line() as ab:
        ab.mangle = lambda data: data + data
        ab.proxy.send(Need(generation=1))
        assert await ab.driver.receive() == Need(generation=1)
        with pytest.raises(wire.FrameError, match="forged, repeated or out of order"):
            await ab.driver.receive()


async def test_reordered_frames_are_refused() -> None:
    kept = bytearray()
    one, two = wire.encode(Need(generation=1)), wire.encode(Need(generation=2))
    frame_bytes = 5 + len(one.data) + 16

    def swap(data: bytes) -> bytes:
        kept.extend(data)
        return bytes(kept[frame_bytes:] + kept[:frame_bytes]) if len(kept) == 2 * frame_bytes else b""

    async with line() as ab:
        ab.mangle = swap
        ab.proxy.send_body(one)
        ab.proxy.send_body(two)
        with pytest.raises(wire.FrameError, match="forged, repeated or out of order"):
            await ab.driver.receive()


async def test_a_frame_of_the_other_direction_is_refused() -> None:
    async with line() as ab:
        ab.driver.send(Table(generation=1, puts={}))
        reflected = await ab.proxy._reader.read(1 << 16)
        ab.mangle = lambda data: reflected
        ab.proxy.send(Need(generation=1))
        with pytest.raises(wire.FrameError, match="forged"):
            await ab.driver.receive()


async def test_a_frame_that_is_cut_short_is_not_a_clean_end() -> None:
    async with line() as ab:
        ab.mangle = lambda data: data[:-3]
        ab.proxy.send(Need(generation=1))
        await ab.proxy.close()
        with pytest.raises(wire.FrameError, match="3 bytes before the end"):
            await ab.driver.receive()


async def test_a_clean_end_is_told_apart() -> None:
    async with line() as ab:
        await ab.proxy.close()
        with pytest.raises(wire.Closed):
            await ab.driver.receive()


async def test_an_oversized_frame_is_refused_before_it_is_read() -> None:
    async with line() as ab:
        ab.mangle = lambda data: struct.pack(">IB", wire.MAX_FRAME_BYTES + 1, 0)
        ab.proxy.send(Need(generation=1))
        with pytest.raises(wire.FrameError, match="not one of ours"):
            await ab.driver.receive()


async def test_an_oversized_message_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 1000)
    with pytest.raises(wire.FrameError, match="exceeds the limit of 1000"):
        wire.encode(Puts(generation=1, puts={"global": {"0": bytes(2000)}}))


async def test_a_small_frame_that_inflates_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with line() as ab:
        ab.proxy.send(Puts(generation=1, puts={"global": {"0": bytes(1_000_000)}}))
        monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 100_000)
        with pytest.raises(wire.FrameError, match="more than 100000 bytes"):
            await ab.driver.receive()


async def test_a_message_of_the_wrong_kind_is_refused() -> None:
    async with line() as ab:
        ab.proxy.send(Table(generation=1, puts={}))
        with pytest.raises(wire.FrameError, match="no known message"):
            await ab.driver.receive()
