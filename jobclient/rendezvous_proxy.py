"""One job's connection between this node's workers and the job's driver.

A worker that waits at the gate, or for a rendezvous key, is never failed because the driver is away: the proxy goes on
looking for the newest driver and says hello with all it knows. A driver of a lower epoch than one seen is refused.
Runs on one event loop; the state is LocalWorld's.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.records import DriverRecord, Rendezvous
from edl_collective.driver import wire
from edl_collective.driver.relay import FLUSH_S, chunks
from edl_collective.messages import AgentMessage, DriverMessage, Message, Puts
from jobclient.job_proxy import Answer, LocalWorld, ToDriver, ToWorker, Waiting, WorldChanged
from jobclient.rendezvous_http import Connection, RendezvousServer, rendezvous_address

logger = logging.getLogger(__name__)

#: how often keys are asked for again while requests wait for them
NEED_S = 0.5
_RETRY_FIRST_S, _RETRY_MOST_S = 0.02, 0.5


class JobProxy:
    """The gate and the rendezvous of `job` for the workers of `node`.

    send(worker, message): deliver Assigned, Leave, Interrupt or Abort to a worker of this node.
    world_changed(record): a new generation is known (called before its Assigned messages are sent).
    All methods are called on the event loop; the callbacks too, and they may not block.
    """

    def __init__(
        self,
        job: str,
        node: str,
        incarnation: str,
        key: ClusterKey,
        send: Callable[[str, AgentMessage], None],
        server: RendezvousServer,
        world_changed: Callable[[Rendezvous], None],
    ) -> None:
        self._job, self._key, self._server = job, key, server
        self._wire_key = wire.driver_key(key, job)
        self._send, self._world_changed = send, world_changed
        self._tokens: dict[str, str] = {}
        self._world: LocalWorld[Connection] = LocalWorld(node, incarnation, self._address)
        self._driver: DriverRecord | None = None
        #: the highest epoch seen: drivers below it have been replaced
        self._epoch = 0
        self._driver_changed = asyncio.Event()
        self._channel: wire.Channel[DriverMessage] | None = None
        self._task: asyncio.Task[None] | None = None
        self._flush: asyncio.TimerHandle | None = None
        self._need: asyncio.TimerHandle | None = None

    @property
    def record(self) -> Rendezvous:
        """The newest world that this node knows."""
        return self._world.record

    async def start(self) -> None:
        """Serve this job; the RendezvousServer must be started."""
        assert self._server.port, "start the RendezvousServer first: its port is part of every assignment"
        self._server.add(self._job, self)
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        """Forget the job; requests of its workers are refused from now on."""
        self._server.remove(self._job)
        for timer in (self._flush, self._need):
            if timer is not None:
                timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # ---- what the JobClient tells ---------------------------------------------------------------------------------

    def worker_gate(self, worker: str, last_generation: int) -> None:
        """`worker` waits at the gate; `last_generation` is the newest that it was Assigned, 0 if none."""
        self._act(self._world.gate(worker, last_generation))

    def worker_running(self, worker: str, generation: int) -> None:
        """Horovod is initialised in `worker` for `generation`."""
        self._act(self._world.running(worker, generation))

    def worker_finished(self, worker: str) -> None:
        """The training function of `worker` returned: its exit is no loss. Call it before worker_exited."""
        self._act(self._world.finished(worker))

    def worker_exited(self, worker: str, detail: str) -> None:
        """`worker` was reaped; `detail` completes the sentence "worker w3 ...": "killed by SIGKILL", "exit code 1"."""
        self._act(self._world.exited(worker, detail))

    def driver_changed(self, driver: DriverRecord | None) -> None:
        """What the store says about the job's driver; None while there is none."""
        if driver is not None and driver.epoch < self._epoch:
            logger.warning("job %s: refused the driver of epoch %d: %d was seen", self._job, driver.epoch, self._epoch)
            return
        if driver == self._driver:
            return
        self._driver = driver
        if driver is not None:
            if self._channel is not None and driver.epoch > self._epoch:
                self._channel.abort()  # an address that was only written again, after an outage, breaks nothing
            self._epoch = driver.epoch
        self._driver_changed.set()

    # ---- what the rendezvous server asks (rendezvous_http.Keys) ---------------------------------------------------

    def token(self, worker: str) -> str:
        found = self._tokens.get(worker)
        if found is None:
            found = self._tokens[worker] = self._key.worker_token(self._job, worker)
        return found

    def get(self, worker: str, generation: int, scope: str, key: str, ticket: Connection) -> bytes | Waiting | None:
        value = self._world.get(worker, generation, scope, key, ticket)
        if isinstance(value, Waiting) and self._need is None:
            self._need = asyncio.get_running_loop().call_later(NEED_S, self._ask)
        return value

    def put(
        self, worker: str, generation: int, scope: str, key: str, value: bytes
    ) -> list[Answer[Connection]] | Waiting:
        answers = self._world.put(worker, generation, scope, key, value)
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_S, self._pass_on)
        return answers

    def drop(self, ticket: Connection) -> None:
        self._world.drop(ticket)

    # ---- the driver -----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Keep a connection to the newest driver."""
        retry_s = _RETRY_FIRST_S
        while True:
            driver = self._driver
            self._driver_changed.clear()
            try:
                if driver is not None:
                    channel = await wire.connect(driver.host, driver.port, self._wire_key, driver.epoch)
                    retry_s = _RETRY_FIRST_S
                    await self._converse(channel, driver)
            except wire.Closed as error:
                logger.info("job %s: driver of epoch %d: %s", self._job, driver.epoch if driver else 0, error)
            except (OSError, wire.WireError) as error:
                logger.warning("job %s: driver of epoch %d: %s", self._job, driver.epoch if driver else 0, error)
            try:
                async with asyncio.timeout(None if self._driver is None else retry_s * random.uniform(0.5, 1.0)):
                    await self._driver_changed.wait()
                retry_s = _RETRY_FIRST_S
            except TimeoutError:
                retry_s = min(2 * retry_s, _RETRY_MOST_S)

    async def _converse(self, channel: wire.Channel[DriverMessage], driver: DriverRecord) -> None:
        if driver.epoch < self._epoch:
            channel.abort()
            return
        self._channel = channel
        try:
            channel.send(self._world.hello())
            self._world.take_unsaid()  # the hello holds them
            self._ask()
            while True:
                message = await channel.receive()
                if driver.epoch < self._epoch:
                    return  # it was read before the newer driver appeared, and is not obeyed any more
                self._act(self._world.heard(message))
        finally:
            self._channel = None
            channel.abort()

    def _act(self, actions: Sequence[ToWorker | ToDriver | WorldChanged | Answer[Connection]]) -> None:
        for action in actions:
            match action:
                case ToWorker(worker, message):
                    self._send(worker, message)
                case ToDriver(said):
                    self._tell(said)
                case WorldChanged(record):
                    self._world_changed(record)
                case Answer(ticket, value):
                    ticket.answer(value)

    def _tell(self, message: Message) -> None:
        if self._channel is not None:
            self._channel.send(message)

    def _pass_on(self) -> None:
        self._flush = None
        unsaid = self._world.take_unsaid()
        for part in chunks(unsaid) if self._channel is not None else ():
            self._tell(Puts(generation=self._world.record.generation, puts=part))

    def _ask(self) -> None:
        """While requests wait, ask for their keys again: a new driver may know what the old one did not send."""
        if self._need is not None:
            self._need.cancel()
            self._need = None
        need = self._world.missing()
        if need is not None:
            self._tell(need)
            self._need = asyncio.get_running_loop().call_later(NEED_S, self._ask)

    def _address(self, worker: str, generation: int) -> str:
        return rendezvous_address(self._server.port, self._job, worker, self.token(worker), generation)
