"""Three bugs that drivers and proxies of this kind have had, each found by killing a driver at the worst moment.

1. Keys before the record: somebody hears of a generation that no durable record holds; the driver dies, and its
   successor forms another world under the same number.
2. A reply lost after the write: the record is durable, the driver dies before it answers; whoever waits at the gate
   would wait for ever, or be taken for one that has left the new world already.
3. An interrupt lost in on_reset: Horovod empties the state's queue in each reset, and with it a notice that came
   during the reset; the world stays as it is for ever.
"""

from collections.abc import Callable

import pytest
from horovod.common.elastic import State as HorovodState
from horovod.common.exceptions import HostsUpdatedInterrupt
from horovod.runner.elastic.worker import HostUpdateResult
from world_sim import Cluster

from edl_collective import horovod as drop_in
from edl_collective.coord.records import Rendezvous
from edl_collective.driver.relay import Tables
from edl_collective.driver.world import rank
from edl_collective.messages import Assigned, Need, Table, World
from edl_collective.worlds import Worlds
from jobclient.job_proxy import WAITING, Answer, LocalWorld, ToWorker


def record(generation: int) -> Rendezvous:
    return Rendezvous(generation=generation, epoch=1, members=rank([("w1", "a"), ("w2", "b")]))


def running_on_a() -> LocalWorld[str]:
    """Worker w1 runs on node a in generation 1 and has come to the gate again."""
    local: LocalWorld[str] = LocalWorld("a", "a-1", lambda worker, generation: f"{worker}/{generation}")
    local.gate("w1", 0)
    local.heard(World(record=record(1)))
    local.running("w1", 1)
    local.gate("w1", 1)
    return local


class TestKeysBeforeTheRecord:
    def test_nobody_hears_of_a_generation_before_its_record_is_written(self) -> None:
        """Whatever the driver's death cuts off, no two worlds have one generation (world_sim checks each answer)."""
        whole = Cluster()
        whole.scale({"a": 1, "b": 1}, "start")
        whole.settle()
        for fail_at in range(1, whole.effects + 2):
            cluster = Cluster()
            cluster.crash_at = {fail_at}
            cluster.scale({"a": 1, "b": 1}, "start")
            cluster.settle()
            cluster.check()

    def test_keys_of_a_generation_that_the_driver_has_not_begun_are_not_passed_on(self) -> None:
        tables = Tables(1)
        assert not tables.put("a", 2, {"global": {"0": b"early"}})
        assert tables.find(Need(generation=2, keys={"global": ("0",)})) == {}

    def test_keys_that_overtake_the_record_are_asked_for_again(self) -> None:
        local = running_on_a()
        early = Table(generation=2, puts={"global": {"1": b"v"}})
        assert local.heard(early) == []
        local.heard(World(record=record(2)))
        assert local.get("w1", 2, "global", "1", "ticket") is WAITING
        assert local.missing() == Need(generation=2, keys={"global": ("1",)})
        assert local.heard(early) == [Answer("ticket", b"v")]


class TestAReplyLostAfterTheWrite:
    def test_the_successor_answers_from_the_record(self) -> None:
        cluster = Cluster()
        cluster.scale({"a": 1, "b": 1}, "start")
        while cluster.record.generation == 0:
            cluster.crash_at = {cluster.effects + 2}  # after the write, if the next effect is one
            cluster.choices()[0]()
        assert cluster.driver is None, "it died with the record written and nothing said"
        assert {w.state for w in cluster.workers.values()} == {"gate"}
        cluster.crash_at = set()
        cluster.settle()
        cluster.check()
        assert (cluster.record.generation, cluster.record.epoch) == (1, 2), "the world that was written is formed"

    def test_a_worker_that_asks_with_the_generation_before_gets_the_answer_again(self) -> None:
        local = running_on_a()
        (first,) = [a for a in local.heard(World(record=record(2))) if isinstance(a, ToWorker)]
        assert isinstance(first.message, Assigned)
        assert local.gate("w1", 1) == [first]


class WithQueue(HorovodState):  # type: ignore[misc]  # Horovod has no types
    """Horovod's own state, alone in its world."""

    def __init__(self) -> None:
        super().__init__(bcast_object=lambda value, *_args, **_kwargs: value, get_rank=lambda: 0)

    def save(self) -> None: ...

    def restore(self) -> None: ...

    def sync(self) -> None: ...

    def reset(self) -> None: ...


class TwoWorlds:
    """The second is to change before its first step: the notice came while it was formed."""

    cause, driver_epoch = "", 1

    def __init__(self, notices: drop_in.Notices) -> None:
        self.generation, self._notices = 1, notices

    def enter(self) -> None:
        self.generation += 1
        self._notices.tell()

    def interrupted(self) -> bool:
        return self.generation == 2

    def exit(self) -> None: ...

    def give_up(self) -> None: ...

    def finish(self) -> None: ...


class TestAnInterruptLostInOnReset:
    def test_horovods_reset_forgets_a_notice(self) -> None:
        state = WithQueue()
        state.on_hosts_updated(2, HostUpdateResult.mixed)
        state.on_reset()
        state.check_host_updates()  # raises nothing: the notice is lost

    def test_a_notice_that_comes_during_a_reset_ends_the_world_that_it_forms(self) -> None:
        notices = drop_in.Notices()
        worlds: Worlds = TwoWorlds(notices)  # type: ignore[assignment]
        ends: list[Callable[[], None]] = [_world_changes, lambda: None]
        noticed: list[int | None] = []

        def train(state: WithQueue) -> str:
            try:
                state.check_host_updates()
            except HostsUpdatedInterrupt:
                noticed.append(worlds.generation)
                raise
            if ends:
                ends.pop(0)()
            return "done"

        assert drop_in.carry(train, worlds, notices, WithQueue()) == "done"
        assert noticed == [2]


def _world_changes() -> None:
    raise HostsUpdatedInterrupt(skip_sync=False)


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_record_of_a_replaced_driver_is_not_obeyed(epoch: int) -> None:
    local = running_on_a()
    newer = Rendezvous(generation=2, epoch=3, members=record(2).members)
    local.heard(World(record=newer))
    assert local.heard(World(record=Rendezvous(generation=2, epoch=epoch, members=()))) == []
    assert local.record == newer
