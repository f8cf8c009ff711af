"""The process of one driver: loads facts, decides, applies, waits.

Connections live on the event loop; the store blocks, so each of its calls runs on one thread of ours, in order, and its
result comes back as an event. Store trouble stops decisions that need the store, never the workers.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from edl_collective.coord.clock import Clock
from edl_collective.coord.errors import Disconnected, VersionConflict
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import DriverRecord, Rendezvous
from edl_collective.coord.store import Store
from edl_collective.driver import world
from edl_collective.driver.relay import Relay
from edl_collective.driver.seat import Facts, JobGone, Replaced, Seat
from edl_collective.driver.state import Event, NodesRead, PlanRead, RecordWritten, State, WriteConflict, observe

logger = logging.getLogger(__name__)

T = TypeVar("T")

EXIT_DONE = 0
EXIT_REPLACED = 3
_RETRY_S = 0.2


class DriverProcess:
    """Drives `job` from `node` until the job ends, `stop` is called or another driver takes over."""

    def __init__(
        self, store: Store, paths: Paths, job: str, node: str, host: str, key: bytes, clock: Clock, config: world.Config
    ) -> None:
        self._job, self._node, self._host, self._key = job, node, host, key
        self._clock, self._config = clock, config
        self._loop = asyncio.get_running_loop()
        self._seat = Seat(store, paths, job, self._store_changed)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="driver-store")
        self._wake = asyncio.Event()
        self._look_again = True
        self._stopping = False
        self._events: list[Event] = []
        self._pending: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """End soon and cleanly; the workers go on without a driver."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> int:
        """Returns the exit status: EXIT_DONE, or EXIT_REPLACED when another driver leads."""
        started_s = self._clock.monotonic_s()
        relay: Relay | None = None
        try:
            record, version = await self._on_thread(self._seat.take)
            relay = Relay(self._key, self._seat.epoch, record.generation, self._tell)
            port = await relay.start(self._host)
            address = DriverRecord(node=self._node, host=self._host, port=port, epoch=self._seat.epoch, pid=os.getpid())
            await self._on_thread(lambda: self._seat.publish(address))
            ready_ms = 1000 * (self._clock.monotonic_s() - started_s)
            logger.info("job %s: leading with epoch %d in %.0f ms", self._job, self._seat.epoch, ready_ms)
            return await self._lead(relay, State(epoch=self._seat.epoch, record=record, version=version))
        except Replaced as error:
            logger.error("job %s: %s", self._job, error)
            return EXIT_REPLACED
        except JobGone as error:
            logger.info("%s", error)
            return EXIT_DONE
        finally:
            if relay is not None:
                await relay.close()
            for task in self._pending:
                task.cancel()
            self._seat.close()
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _lead(self, relay: Relay, state: State) -> int:
        said = ""
        while not self._stopping:
            if self._failure is not None:
                raise self._failure
            if self._look_again:
                self._look_again = False
                self._begin(self._look())
            events, self._events = self._events, []
            for event in events:
                state = self._observe(relay, state, event)
            decision = world.decide(state, self._clock.monotonic_s(), self._config)
            state = decision.state
            if decision.reason != said:
                said = decision.reason
                logger.info("job %s: %s", self._job, said)
            for effect in decision.effects:
                self._apply(relay, effect)
            await self._wait(decision.wake_at)
        return EXIT_DONE

    def _observe(self, relay: Relay, state: State, event: Event) -> State:
        before = state.record.generation
        state = observe(state, event)
        if state.record.generation != before:
            relay.begin(state.record.generation)  # before anybody hears of the generation and puts keys
        return state

    def _apply(self, relay: Relay, effect: world.Effect) -> None:
        match effect:
            case world.Send(node, message):
                relay.send(node, message)
            case world.WriteRecord(record, version):
                self._begin(self._write(record, version))
            case world.Stop():
                raise Replaced(f"another driver wrote the rendezvous record; epoch {self._seat.epoch} has ended")

    async def _wait(self, wake_at: float | None) -> None:
        timeout_s = None if wake_at is None else max(0.0, wake_at - self._clock.monotonic_s())
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()

    # ---- the store ----------------------------------------------------------------------------------------------

    def _store_changed(self) -> None:
        """Called from a thread of the store."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._want_look)

    def _want_look(self) -> None:
        self._look_again = True
        self._wake.set()

    async def _look(self) -> None:
        try:
            facts: Facts = await self._on_thread(self._seat.look)
        except Disconnected as error:
            logger.warning("job %s: %s; the world stays as it is", self._job, error)
            await asyncio.sleep(_RETRY_S)
            self._want_look()
            return
        self._config = replace(self._config, min_np=facts.min_np)
        self._tell(NodesRead(facts.nodes))
        self._tell(PlanRead(facts.plan))

    async def _write(self, record: Rendezvous, version: int) -> None:
        while True:
            try:
                self._tell(RecordWritten(await self._on_thread(lambda: self._seat.write(record, version))))
                return
            except VersionConflict:
                self._tell(WriteConflict())
                return
            except Disconnected as error:
                logger.warning("job %s: generation %d not written yet: %s", self._job, record.generation, error)
                await asyncio.sleep(_RETRY_S)

    async def _on_thread(self, call: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._thread, call)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._pending.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._pending.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._wake.set()
