"""The driver's place in the store: epochs that fence, an address that is kept, writes whose answer was lost."""

import asyncio
from collections.abc import Callable

import pytest
from rendezvous_sim import Meetings, SimJob, SimNode
from trees import delete_all

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import SystemClock
from edl_collective.coord.errors import RecordError, VersionConflict
from edl_collective.coord.memory_store import MemoryStore, MemoryTree
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import (
    DriverRecord,
    JobSpec,
    JobStatus,
    NodeRecord,
    Phase,
    Rendezvous,
    decode,
    encode,
)
from edl_collective.driver import world
from edl_collective.driver.process import EXIT_DONE, EXIT_REPLACED, DriverProcess
from edl_collective.driver.seat import JobGone, Replaced, Seat
from edl_collective.driver.wire import driver_key

pytestmark = pytest.mark.integration

PATHS = Paths("/edl")
JOB = "train"
KEY = ClusterKey(b"a key for tests, thirty-two byte")


@pytest.fixture
def tree() -> MemoryTree:
    return MemoryTree()


@pytest.fixture
def sim(tree: MemoryTree) -> SimJob:
    return SimJob(MemoryStore(tree), PATHS, JOB)


def seat(store: MemoryStore) -> Seat:
    return Seat(store, PATHS, JOB, lambda: None)


def address(epoch: int, port: int = 1) -> DriverRecord:
    return DriverRecord(node="a", host="127.0.0.1", port=port, epoch=epoch, pid=1)


def published(store: MemoryStore) -> DriverRecord:
    found = store.get(PATHS.driver(JOB))
    assert found is not None
    return decode(found.data, DriverRecord)


@pytest.mark.usefixtures("sim")
class TestSeat:
    def test_each_driver_takes_a_higher_epoch_and_fences_the_one_before(self, tree: MemoryTree) -> None:
        first, second = seat(MemoryStore(tree)), seat(MemoryStore(tree))
        record, version = first.take()
        assert (record.epoch, record.generation) == (1, 0)
        assert second.take()[0].epoch == 2
        with pytest.raises(VersionConflict):
            first.write(Rendezvous(generation=1, epoch=1, members=()), version)
        with pytest.raises(Replaced, match="epoch 2 has taken the seat of epoch 1"):
            first.look()

    def test_a_write_whose_answer_was_lost_is_recognised(self, tree: MemoryTree) -> None:
        driver = seat(MemoryStore(tree))
        _, version = driver.take()
        record = Rendezvous(generation=1, epoch=1, members=())
        written = driver.write(record, version)
        assert driver.write(record, version) == written

    def test_the_address_of_a_dead_driver_is_replaced(self, tree: MemoryTree) -> None:
        store = MemoryStore(tree)
        for epoch in (1, 2):
            driver = seat(MemoryStore(tree))
            driver.take()
            driver.publish(address(epoch))
            assert published(store).epoch == epoch

    def test_the_address_of_a_newer_driver_is_not_replaced(self, tree: MemoryTree) -> None:
        old, new = seat(MemoryStore(tree)), seat(MemoryStore(tree))
        old.take()
        new.take()
        new.publish(address(2))
        with pytest.raises(Replaced, match="higher epoch than 1"):
            old.publish(address(1))

    def test_the_address_is_published_again_in_a_new_session(self, tree: MemoryTree) -> None:
        mine = MemoryStore(tree)
        driver = seat(mine)
        driver.take()
        driver.publish(address(1))
        mine.expire()
        assert MemoryStore(tree).get(PATHS.driver(JOB)) is None
        mine.resume()
        driver.look()
        assert published(mine).epoch == 1

    def test_facts(self, tree: MemoryTree, sim: SimJob) -> None:
        store = MemoryStore(tree)
        driver = seat(store)
        driver.take()
        assert (driver.look().plan, driver.look().nodes, driver.look().min_np) == (None, {}, 1)
        sim.plan({"w1": "a"}, "start")
        record = NodeRecord(node="a", incarnation="a-7", address="127.0.0.1", port=1, slots=1)
        store.create(PATHS.node("a"), encode(record), ephemeral=True)
        store.create(PATHS.node("b"), b"not a record", ephemeral=True)
        facts = driver.look()
        assert facts.plan is not None
        assert facts.plan.revision == 1
        assert facts.nodes == {"a": "a-7", "b": "?"}, "a node that cannot be read is not taken for gone"

    def test_a_job_that_has_ended_needs_no_driver(self, tree: MemoryTree) -> None:
        store = MemoryStore(tree)
        driver = seat(store)
        driver.take()
        status = JobStatus(phase=Phase.SUCCEEDED, reason="done", since=0.0)
        store.create(PATHS.status(JOB), encode(status))
        with pytest.raises(JobGone, match="has succeeded"):
            driver.look()

    def test_a_job_submitted_again_is_not_driven_on(self, tree: MemoryTree) -> None:
        store = MemoryStore(tree)
        driver = seat(store)
        driver.take()
        driver.publish(address(1))
        driver.look()
        delete_all(store, PATHS.job(JOB))
        store.create(PATHS.spec(JOB), encode(JobSpec(job=JOB, command=("x",), max_np=1, submitted_at=2.0)))
        store.create(PATHS.rendezvous(JOB), encode(Rendezvous(generation=0, epoch=1, members=())))
        with pytest.raises(JobGone, match="another of that name submitted"):
            driver.look()
        assert store.get(PATHS.driver(JOB)) is None, "the next driver's place is free"

    def test_a_plan_that_does_not_parse_is_an_error(self, tree: MemoryTree) -> None:
        store = MemoryStore(tree)
        driver = seat(store)
        driver.take()
        store.create(PATHS.plan(JOB), b"{}")
        with pytest.raises(RecordError):
            driver.look()


def test_a_job_that_does_not_exist_has_no_seat(tree: MemoryTree) -> None:
    with pytest.raises(JobGone, match="does not exist"):
        seat(MemoryStore(tree)).take()


class Running:
    """A driver on this event loop, with a session of its own that tests can break, and one node."""

    def __init__(self, tree: MemoryTree, sim: SimJob) -> None:
        self.sim = sim
        self.store = MemoryStore(tree)
        self.node = SimNode("a", MemoryStore(tree), PATHS, JOB, KEY, Meetings())
        self.driver = DriverProcess(
            self.store, PATHS, JOB, "a", "127.0.0.1", driver_key(KEY, JOB), SystemClock(), world.Config()
        )

    async def start(self) -> None:
        await self.node.start()
        self.task = asyncio.create_task(self.driver.run())

    def plan(self, *workers: str) -> None:
        self.sim.plan(dict.fromkeys(workers, "a"), "scale")
        for worker in workers:
            if worker not in self.node.workers:
                self.node.spawn(worker)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - the store knows no event loop
                await asyncio.sleep(0.005)

    def whole(self) -> bool:
        members = {m.worker for m in self.sim.record().members}
        return members == set(self.sim.planned) and all(self.node.workers[w].state == "running" for w in members)

    async def stop(self) -> int:
        self.driver.stop()
        status = await self.task
        await self.node.close()
        return status


async def test_a_generation_is_written_when_the_store_is_back(tree: MemoryTree, sim: SimJob) -> None:
    job = Running(tree, sim)
    await job.start()
    job.plan("w1")
    await job.until(job.whole)
    job.store.suspend()
    job.node.workers["w1"].kill()
    await asyncio.sleep(0.05)
    assert job.sim.record().generation == 1
    job.plan("w2")
    job.store.resume()
    await job.until(job.whole)
    assert job.sim.record().cause.startswith("restart: worker w1 killed by SIGKILL")
    assert await job.stop() == EXIT_DONE


async def test_an_expired_session_keeps_workers_running_and_the_driver_in_its_seat(
    tree: MemoryTree, sim: SimJob
) -> None:
    job = Running(tree, sim)
    await job.start()
    job.plan("w1")
    await job.until(job.whole)
    job.store.expire()
    assert job.node.workers["w1"].state == "running"
    job.store.resume()
    await job.until(lambda: job.store.get(PATHS.driver(JOB)) is not None)
    job.plan("w1", "w2")
    await job.until(job.whole)
    assert published(job.store).epoch == 1
    assert await job.stop() == EXIT_DONE


async def test_a_driver_whose_seat_is_taken_says_so(tree: MemoryTree, sim: SimJob) -> None:
    job = Running(tree, sim)
    await job.start()
    job.plan("w1")
    await job.until(job.whole)
    seat(MemoryStore(tree)).take()
    assert await asyncio.wait_for(job.task, 60) == EXIT_REPLACED
    await job.node.close()
