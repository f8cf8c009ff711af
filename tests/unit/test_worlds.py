"""One class for each launcher: how a world is entered, interrupted and left. Horovod is real, and alone."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import horovod.torch as hvd
import pytest

from edl_collective.context import Context, Launcher, Membership
from edl_collective.messages import Happened, Interrupt, Leave, Message, decode_worker_line, encode_line
from edl_collective.worlds import FixedWorld, GatedWorlds, HorovodrunWorlds, worlds_of


@pytest.fixture(autouse=True)
def _shut_down() -> Iterator[None]:
    yield
    hvd.shutdown()


class Agent:
    """The JobClient's end of one worker's connection."""

    def __init__(self, path: Path) -> None:
        self.membership = Membership("j", "w1", "a", 0, "token", str(path))
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()

    def accept(self) -> None:
        self.peer, _ = self._server.accept()
        self.peer.settimeout(10)
        self._lines = self.peer.makefile("rb")

    def hear(self) -> str:
        return type(decode_worker_line(self._lines.readline())).__name__

    def say(self, message: Message) -> None:
        self.peer.sendall(encode_line(message))

    def close(self) -> None:
        self._lines.close()
        self.peer.close()
        self._server.close()


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path / "s")


def context(launcher: Launcher, membership: Membership | None = None) -> Context:
    return Context(launcher, membership, 0, None, None)


def test_the_launcher_decides(agent: Agent) -> None:
    assert isinstance(worlds_of(context(Launcher.FIXED)), FixedWorld)
    horovodrun = worlds_of(context(Launcher.HOROVODRUN_ELASTIC))
    assert isinstance(horovodrun, HorovodrunWorlds)
    horovodrun.finish()
    gated = worlds_of(context(Launcher.JOBCLIENT, agent.membership))
    agent.accept()
    assert isinstance(gated, GatedWorlds)
    agent.say(Leave())
    with pytest.raises(SystemExit):
        gated.enter()
    agent.close()


def test_a_fixed_world_is_entered_once() -> None:
    world = FixedWorld()
    world.enter()
    assert (hvd.size(), world.interrupted(), world.generation) == (1, False, None)
    world.exit()
    with pytest.raises(SystemExit, match="this job's world is fixed"):
        world.enter()


def test_horovodruns_notice_is_a_level_until_the_next_world() -> None:
    from horovod.common.elastic import notification_manager

    worlds = HorovodrunWorlds()
    worlds.enter()
    assert (worlds.cause, worlds.interrupted()) == ("start", False)
    notification_manager.handle_hosts_updated(1.0, 0)
    assert worlds.interrupted()
    assert worlds.interrupted()
    worlds.exit()
    worlds.enter()
    assert (worlds.cause, worlds.interrupted()) == ("hosts changed", False)
    worlds.finish()
    notification_manager.handle_hosts_updated(2.0, 0)
    assert not worlds.interrupted()


def test_a_gated_worker_that_is_told_to_leave_exits_with_status_0(agent: Agent) -> None:
    before = dict(os.environ)
    worlds = GatedWorlds(agent.membership)
    agent.accept()
    agent.say(Leave(reason="2 to 1"))
    with pytest.raises(SystemExit) as left:
        worlds.enter()
    assert left.value.code == 0
    assert [agent.hear(), agent.hear()] == ["WorkerHello", "Gate"]
    assert os.environ == before  # nothing was assigned, so nothing is left for a later init()
    worlds.happened(Happened(kind="checkpoint", text="saved epoch 3", fields={}))
    assert agent.hear() == "Happened", "a save that was in flight is told before the process ends"
    agent.close()


def test_a_gated_world_is_interrupted_by_its_generation_and_those_above(agent: Agent) -> None:
    heard: list[int] = []
    rose = threading.Event()

    def on_interrupt() -> None:
        heard.append(1)
        rose.set()

    worlds = GatedWorlds(agent.membership, on_interrupt)
    worlds._generation = 3  # as if assigned
    agent.accept()
    for generation, interrupted in ((2, False), (3, True), (1, True)):
        rose.clear()
        agent.say(Interrupt(generation=generation))
        assert rose.wait(10)
        assert worlds.interrupted() is interrupted
    worlds.finish()
    assert [agent.hear(), agent.hear()] == ["WorkerHello", "Finished"]
    agent.say(Leave())
    with pytest.raises(SystemExit):
        worlds.enter()
    agent.close()
