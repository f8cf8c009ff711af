"""A worker's side of the conversation with its JobClient, over a real Unix socket."""

import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edl_collective.agent_link import AgentLink
from edl_collective.context import Membership
from edl_collective.errors import AgentLost
from edl_collective.messages import (
    Abort,
    Assigned,
    Gate,
    HeardAbort,
    Interrupt,
    Leave,
    Message,
    Running,
    WorkerHello,
    WorkerMessage,
    decode_worker_line,
    encode_line,
)


class Agent:
    """The JobClient's end: accepts one worker, hears and says lines."""

    def __init__(self, path: Path) -> None:
        self.membership = Membership("j", "w1", "a", 0, "token", str(path))
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()

    def accept(self) -> None:
        self._peer, _ = self._server.accept()
        self._peer.settimeout(10)
        self._lines = self._peer.makefile("rb")

    def hear(self) -> WorkerMessage:
        return decode_worker_line(self._lines.readline())

    def say(self, *messages: Message) -> None:
        self._peer.sendall(b"".join(encode_line(message) for message in messages))

    def die(self) -> None:
        self._lines.close()
        self._peer.close()

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "s")
    yield agent
    agent.close()


@pytest.fixture
def link(agent: Agent) -> Iterator[AgentLink]:
    link = AgentLink(agent.membership)
    agent.accept()
    assert isinstance(agent.hear(), WorkerHello)
    yield link
    link.close()
    agent.die()


def assigned(generation: int, epoch: int = 1) -> Assigned:
    return Assigned(
        generation=generation, epoch=epoch, rank=0, size=1, local_rank=0, local_size=1, cross_rank=0, cross_size=1,
        rendezvous="127.0.0.1:1/r/j/w1/t/1",
    )  # fmt: skip


def test_gate_waits_for_the_next_world(agent: Agent, link: AgentLink) -> None:
    agent.say(assigned(2), assigned(3))
    assert link.gate(2) == assigned(3)
    assert agent.hear() == Gate(last_generation=2)
    link.running(3)
    assert agent.hear() == Running(generation=3)


def test_a_place_from_a_driver_of_a_lower_epoch_is_refused(agent: Agent, link: AgentLink) -> None:
    agent.say(assigned(1, epoch=2))
    assert link.gate(0) == assigned(1, epoch=2)
    agent.say(assigned(2, epoch=1), assigned(2, epoch=3))
    assert link.gate(1) == assigned(2, epoch=3)


def test_gate_may_answer_leave(agent: Agent, link: AgentLink) -> None:
    agent.say(Leave(reason="scale 2 to 1"))
    assert link.gate(1) == Leave(reason="scale 2 to 1")


def test_notices_are_levels(agent: Agent) -> None:
    rose = threading.Semaphore(0)
    aborted: queue.SimpleQueue[int] = queue.SimpleQueue()

    def abort(generation: int) -> bool:
        aborted.put(generation)
        return generation == 4

    link = AgentLink(agent.membership, rose.release, abort)
    agent.accept()
    assert isinstance(agent.hear(), WorkerHello)
    agent.say(Interrupt(generation=5), Interrupt(generation=3), Abort(generation=4))
    assert rose.acquire(timeout=60)
    assert rose.acquire(timeout=60)
    assert link.interrupted_generation == 5
    assert aborted.get(timeout=60) == 4
    assert agent.hear() == HeardAbort(generation=4, inside=True)
    agent.say(Abort(generation=6))
    assert agent.hear() == HeardAbort(generation=6, inside=False)
    link.close()
    agent.die()


def test_a_dead_jobclient_ends_the_wait(agent: Agent) -> None:
    link = AgentLink(agent.membership)
    agent.accept()
    agent.die()
    with pytest.raises(AgentLost, match="this worker ends"):
        link.gate(0)
    link.close()


def test_nobody_at_the_socket(tmp_path: Path) -> None:
    with pytest.raises(AgentLost):
        AgentLink(Membership("j", "w1", "a", 0, "token", str(tmp_path / "none")))
