"""A node's rendezvous proxy in a process of its own, for bench.rendezvous: python -m bench.rendezvous_node NAME

JSON lines on stdin call the proxy's methods: ["worker_gate", worker, 0]. Lines on stdout are what it sends to its
workers: [worker, message]. Imports little, because a measurement starts many of these.
"""

import asyncio
import json
import logging
import sys

import msgspec

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.records import DriverRecord
from edl_collective.messages import AgentMessage
from jobclient.rendezvous_http import RendezvousServer
from jobclient.rendezvous_proxy import JobProxy

KEY = ClusterKey(b"a key for measurements, 32 bytes")
JOB = "scale"


async def serve(name: str) -> None:
    """Until stdin ends."""

    def send(worker: str, message: AgentMessage) -> None:
        print(json.dumps([worker, msgspec.json.encode(message).decode()]), flush=True)

    server = RendezvousServer()
    await server.start()
    proxy = JobProxy(JOB, name, "1", KEY, send, server, lambda _: None)
    await proxy.start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        what, *arguments = json.loads(line)
        if what == "driver_changed":
            arguments = [msgspec.json.decode(arguments[0], type=DriverRecord)]
        getattr(proxy, what)(*arguments)
    await proxy.close()
    await server.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(serve(sys.argv[1]))
