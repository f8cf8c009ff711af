"""The node's HTTP server with raw clients: large values, held requests, clients that leave, nonsense."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from rendezvous_sim import request

from jobclient.job_proxy import WAITING, Answer, Waiting
from jobclient.rendezvous_http import MAX_BODY_BYTES, Connection, RendezvousServer, rendezvous_address

pytestmark = pytest.mark.integration

TOKEN = "a" * 32


class Values:
    """One job's keys without a world."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.waiting: list[Connection] = []
        self.arrived = asyncio.Event()

    def get(self, worker: str, generation: int, scope: str, key: str, ticket: Connection) -> bytes | Waiting | None:
        if key in self.values:
            return self.values[key]
        self.waiting.append(ticket)
        self.arrived.set()
        return WAITING

    def put(
        self, worker: str, generation: int, scope: str, key: str, value: bytes
    ) -> list[Answer[Connection]] | Waiting:
        self.values[key] = value
        waiting, self.waiting = self.waiting, []
        return [Answer(ticket, value) for ticket in waiting]

    def drop(self, ticket: Connection) -> None:
        self.waiting.remove(ticket)
        self.arrived.set()

    def token(self, worker: str) -> str:
        return TOKEN


class Served:
    def __init__(self, server: RendezvousServer, values: Values) -> None:
        self.server, self.values = server, values
        self.address = rendezvous_address(server.port, "job", "w1", TOKEN, 1)

    async def say(self, data: bytes) -> bytes:
        """Send raw bytes; all that comes back until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), 60)
        finally:
            writer.close()
            await writer.wait_closed()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    server, values = RendezvousServer(), Values()
    await server.start()
    server.add("job", values)
    yield Served(server, values)
    await server.close()


async def test_a_value_larger_than_the_socket_buffers_goes_both_ways(served: Served) -> None:
    value = bytes(range(256)) * (MAX_BODY_BYTES // 256)
    assert await request(served.address, "PUT", "/global/0", value) == (200, b"")
    assert await request(served.address, "GET", "/global/0") == (200, value)


async def test_a_client_that_reads_late_gets_all_of_a_large_value(served: Served) -> None:
    served.values.values["0"] = value = bytes(MAX_BODY_BYTES)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port, limit=1 << 16)
    path = served.address.partition("/")[2]
    writer.write(f"GET /{path}:0/global/0 HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    await request(served.address, "PUT", "/global/1", b"others are served meanwhile")
    got = await asyncio.wait_for(reader.read(-1), 60)
    assert got.endswith(value)
    writer.close()
    await writer.wait_closed()


async def test_a_held_get_is_answered_by_the_put(served: Served) -> None:
    held = asyncio.create_task(request(served.address, "GET", "/global/0"))
    await served.values.arrived.wait()
    assert not held.done()
    await request(served.address, "PUT", "/global/0", b"v")
    assert await held == (200, b"v")


async def test_a_client_that_leaves_while_held_is_forgotten(served: Served) -> None:
    held = asyncio.create_task(request(served.address, "GET", "/global/0"))
    await served.values.arrived.wait()
    served.values.arrived.clear()
    held.cancel()
    await asyncio.wait_for(served.values.arrived.wait(), 60)
    assert served.values.waiting == []


async def test_a_request_in_pieces_is_one_request(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
    path = served.address.partition("/")[2]
    for piece in (f"PUT /{path}:0/glo", "bal/0 HTTP/1.1\r\nContent-Len", "gth: 4\r\n\r\nab", "cd"):
        writer.write(piece.encode())
        await writer.drain()
        await asyncio.sleep(0.01)
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    assert served.values.values == {"0": b"abcd"}
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01 hello\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /r/job/w1/" + b"b" * 32 + b"/1:0/global/0 HTTP/1.1\r\n\r\n", b"403"),
        (b"GET /r/none/w1/" + b"a" * 32 + b"/1:0/global/0 HTTP/1.1\r\n\r\n", b"403"),
        (b"GET /r/job/w1/" + b"a" * 32 + b"/x:0/global/0 HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /r/job/w1/" + b"a" * 32 + b"/1:0/global/0 HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n", b"413"),
    ],
    ids=["tls", "path", "token", "job", "generation", "method", "long"],
)
async def test_nonsense_is_refused(served: Served, data: bytes, status: bytes) -> None:
    assert (await served.say(data)).split(b" ")[1] == status
    assert served.values.values == {}


async def test_a_burst_of_connections_is_not_dropped(served: Served) -> None:
    served.values.values["0"] = b"v"
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(request(served.address, "GET", "/global/0") for _ in range(400)))
    assert set(answers) == {(200, b"v")}
