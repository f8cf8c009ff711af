"""The server side of the Unix socket by which the workers of a node talk to their JobClient.

A connection speaks for the worker that its first line proves with the worker's token; a newer connection of the same
worker replaces the older one. JSON lines both ways, at most MAX_LINE_BYTES each. It keeps no message: what is sent to a
worker that is not connected is dropped, and the caller learns it.
"""

import asyncio
import contextlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from edl_collective.coord.auth import same
from edl_collective.messages import AgentMessage, WorkerHello, WorkerMessage, decode_worker_line, encode_line
from jobclient.run_as import RunAs, own_folder

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 64 * 1024
HELLO_TIMEOUT_S = 10.0
#: the connection of a dead worker ends as soon as what it left behind is killed; nobody waits longer for that
DRAIN_TIMEOUT_S = 1.0
#: (job, worker)
Name = tuple[str, str]


class WorkerLink:
    """`expected(job, worker)` is the token of a worker of this node, None for one that is not;
    `received(job, worker, message)` is called on the event loop for each message, the hello first."""

    def __init__(
        self,
        node: str,
        expected: Callable[[str, str], str | None],
        received: Callable[[str, str, WorkerMessage], None],
        user: RunAs | None = None,
    ) -> None:
        """`user`: who may connect; None: the user of this process."""
        self.path = _socket_path(node, others=user is not None)
        self._user = user
        self._expected = expected
        self._received = received
        self._writers: dict[Name, asyncio.StreamWriter] = {}
        #: done when the connection of that worker has been read to its end
        self._ended: dict[Name, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, self.path, limit=MAX_LINE_BYTES)
        self.path.chmod(0o600)
        if self._user is not None:
            os.chown(self.path, self._user.uid, self._user.gid)

    def send(self, job: str, worker: str, message: AgentMessage) -> bool:
        """Queue `message`; False if the worker is not connected."""
        writer = self._writers.get((job, worker))
        if writer is None or writer.is_closing():
            return False
        writer.write(encode_line(message))
        return True

    async def drained(self, job: str, worker: str) -> None:
        """Return when all that a dead worker has sent was received."""
        ended = self._ended.get((job, worker))
        if ended is not None:
            await asyncio.wait([ended], timeout=DRAIN_TIMEOUT_S)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # cancelled before its first step, `_serve` has not

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name: Name | None = None
        try:
            name = await self._greet(reader, writer)
            while line := await reader.readline():
                self._received(*name, decode_worker_line(line))
        except TimeoutError:
            logger.warning("closed a connection that said nothing for %g s", HELLO_TIMEOUT_S)
        except ValueError as error:  # a refused hello, a line that is too long, or not a message
            logger.warning("closed the connection of %s: %s", "/".join(name) if name else "an unknown worker", error)
        except ConnectionError as error:
            logger.debug("connection of %s broke: %s", name, error)
        finally:
            if name is not None and self._writers.get(name) is writer:
                del self._writers[name]
                self._ended.pop(name).set_result(None)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Name:
        """Read and check the hello. Raises ValueError if the worker does not belong here or its token is wrong."""
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello = decode_worker_line(await reader.readline())
        if not isinstance(hello, WorkerHello):
            raise ValueError(f"its first message is {type(hello).__name__}, not WorkerHello")
        token = self._expected(hello.job, hello.worker)
        if token is None or not same(hello.token, token):
            raise ValueError(f"{hello.job}/{hello.worker} is not a worker of this node or has a wrong token")
        name = (hello.job, hello.worker)
        before = self._writers.get(name)
        if before is not None:
            before.close()
            self._ended.pop(name).set_result(None)
        self._writers[name] = writer
        self._ended[name] = asyncio.get_running_loop().create_future()
        self._received(*name, hello)
        return name


def _socket_path(node: str, others: bool) -> Path:
    """A short path (the kernel allows 107 bytes) in a directory that only this user can read and change."""
    directory = Path(tempfile.gettempdir()) / f"edl-{os.getuid()}"
    try:
        own_folder(directory, others)
    except OSError as error:
        raise OSError(f"{error} or set TMPDIR") from error
    _sweep(directory)
    return directory / f"{os.getpid()}-{node[:32]}.sock"


def _sweep(directory: Path) -> None:
    """Remove the sockets of JobClients that were killed."""
    for path in directory.glob("*-*.sock"):
        pid = path.name.partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)
