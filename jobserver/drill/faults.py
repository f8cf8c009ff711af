"""The faults of a drill: each is done to a job of full size and returns when the job is whole again.

A fault knows what it does, how to tell that it is over and what it may cost; the drill measures around it.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from jobclient.decide import HUNG_DRIVER_S
from jobserver.drill.cluster import SERVER, Cluster
from jobserver.drill.verdict import HUNG_S, NO_STOP_S, NODE_LOST_S, REFORM_S, RESIZE_S, Limits
from jobserver.drill.victim import Victim

STANDBY = "standby"
#: a worker that starts imports PyTorch, which takes a busy machine its time
BACK_TIMEOUT_S = 180.0
#: worlds that Scene.resize() asks for
ASKED_WORLDS = 2
#: training that is watched while something is away
STEPS_AWAY = 20


@dataclass(frozen=True, slots=True)
class Scene:
    """A job of `workers` workers on nodes of `slots` slots, with two JobServers."""

    cluster: Cluster
    victim: Victim
    workers: int
    slots: int
    nodes: tuple[str, ...]
    choose: random.Random

    def whole(self) -> None:
        """Until the job has all its workers."""
        self.cluster.wait_for_world(self.victim.job, self.workers, BACK_TIMEOUT_S)

    def resize(self) -> float:
        """Take a worker away and give it back (ASKED_WORLDS); when (monotonic) the smaller world completed a step."""
        generation = self.victim.generation()
        at_s = []
        for size in (self.workers - 1, self.workers):
            self.until(partial(self._scaled, size), "a JobServer takes orders")
            self.cluster.wait_for_world(self.victim.job, size, BACK_TIMEOUT_S)
            self.victim.wait_for_steps(1)  # a step is reported before it is logged
            at_s.append(self.victim.first_step_after(generation))
        return at_s[0]

    def _scaled(self, size: int) -> bool:
        self.cluster.post(f"/jobs/{self.victim.job}/scale", {"np": size})
        return True

    def until(self, condition: Callable[[], object], what: str) -> None:
        self.cluster.wait(condition, BACK_TIMEOUT_S, what, self.victim.job)

    def until_others_train(self, generation: int) -> None:
        """Until a world after `generation` has completed steps."""
        self.until(lambda: self.victim.steps()[-1].generation > generation, "the other nodes train")
        self.victim.wait_for_steps(STEPS_AWAY)

    def node(self, *, of_driver: bool) -> str:
        host = self.victim.node_of_driver()
        return host if of_driver else self.choose.choice([node for node in self.nodes if node != host])


@dataclass(frozen=True, slots=True)
class Fault:
    """`do(scene)` returns when (monotonic) a resize that was asked for during the fault was done, None without one."""

    name: str
    what: str
    do: Callable[[Scene], float | None]
    #: of the session time-out in seconds
    limits: Callable[[float], Limits]
    #: each node needs a network namespace of its own
    needs_network: bool = False


# ---- what is done ---------------------------------------------------------------------------------------------------


def kill(scene: Scene) -> None:
    scene.victim.kill_ranks(scene.choose.randrange(scene.workers))
    _next_world(scene)
    scene.whole()


def hang(scene: Scene) -> None:
    """SIGSTOP: the others' collectives fail with gloo's time-out, then the worker is given up and replaced."""
    scene.victim.kill_ranks(scene.choose.randrange(scene.workers), signum=signal.SIGSTOP)
    _next_world(scene)
    scene.whole()


def stop(scene: Scene) -> None:
    node = scene.node(of_driver=False)
    scene.cluster.kill(node, signal.SIGTERM)
    scene.victim.wait_for_steps(STEPS_AWAY)
    _back(scene, node)


def kill_leader(scene: Scene) -> float:
    cluster = scene.cluster
    leader = cluster.get("/health")["leader"]
    successor = STANDBY if leader == SERVER else SERVER
    cluster.kill(leader)
    cluster.ask(successor)
    done_s = scene.resize()
    cluster.start_server(name=leader)
    return done_s


def kill_driver(scene: Scene) -> float:
    scene.until(scene.victim.driver, "there is a driver to kill")
    scene.victim.kill_driver()
    return scene.resize()


def hang_driver(scene: Scene) -> float:
    """SIGSTOP: its session ends, and its JobClient, which lives, replaces it."""
    victim = scene.victim
    scene.until(victim.driver, "there is a driver to stop")
    before = victim.driver()
    os.kill(before["pid"], signal.SIGSTOP)
    scene.until(lambda: victim.driver()["epoch"] > before["epoch"], "another driver has taken over")
    return scene.resize()


def kill_jobclient(scene: Scene, *, of_driver: bool) -> None:
    node, generation = scene.node(of_driver=of_driver), scene.victim.generation()
    scene.cluster.kill(node)
    scene.until_others_train(generation)
    _back(scene, node)


def kill_zookeeper(scene: Scene) -> float:
    """Away for half of a session time-out; the resize is measured from its return."""
    cluster = scene.cluster
    cluster.zookeeper.kill()
    away_until_s = time.monotonic() + cluster.session_timeout_s / 2
    while time.monotonic() < away_until_s:
        scene.victim.wait_for_steps(1)
    cluster.zookeeper.start()
    return scene.resize()


def expire(scene: Scene) -> None:
    """A JobClient that stands still for longer than its session lives, and wakes up."""
    scene.cluster.wait_until_settled()
    node, generation = scene.node(of_driver=False), scene.victim.generation()
    scene.cluster.kill(node, signal.SIGSTOP)
    try:
        scene.until_others_train(generation)
    finally:
        scene.cluster.kill(node, signal.SIGCONT)
    scene.cluster.wait_for_node(node)
    scene.whole()


def cut(scene: Scene, *, of_driver: bool) -> None:
    network = scene.cluster.network
    assert network is not None, "the drill does this only where there is one"
    scene.cluster.wait_until_settled()
    node, generation = scene.node(of_driver=of_driver), scene.victim.generation()
    network.cut(node)
    try:
        scene.until_others_train(generation)
    finally:
        network.heal(node)
    scene.cluster.wait_for_node(node)
    scene.whole()


def _next_world(scene: Scene) -> None:
    generation = scene.victim.generation()
    scene.until(lambda: scene.victim.generation() > generation, "the others form a world")


def _back(scene: Scene, node: str) -> None:
    scene.cluster.add_node(node, slots=scene.slots)
    scene.whole()


# ---- the table ------------------------------------------------------------------------------------------------------


def _reform(_session_timeout_s: float) -> Limits:
    return Limits(REFORM_S)


def _hung(_session_timeout_s: float) -> Limits:
    return Limits(HUNG_S)


def _no_stop(session_timeout_s: float) -> Limits:
    """The resize that follows is not part of the pause."""
    return Limits(NO_STOP_S, RESIZE_S + session_timeout_s)


def _driver_hung(session_timeout_s: float) -> Limits:
    return Limits(NO_STOP_S, RESIZE_S + session_timeout_s + HUNG_DRIVER_S)


def _lost(session_timeout_s: float) -> Limits:
    return Limits(NODE_LOST_S + session_timeout_s)


_ALL = (
    Fault("kill", "SIGKILL to a worker, any rank", kill, _reform),
    Fault("hang", "SIGSTOP to a worker, any rank, for good", hang, _hung),
    Fault("stop", "SIGTERM to a JobClient: its workers leave at a step boundary; then it comes back", stop, _reform),
    Fault("driver", "SIGKILL to the job's driver, then a resize", kill_driver, _no_stop),
    Fault("driver-hang", "SIGSTOP to the job's driver, for good, then a resize", hang_driver, _driver_hung),
    Fault("leader", "SIGKILL to the leading JobServer, then a resize", kill_leader, _no_stop),
    Fault(
        "jobclient", "SIGKILL to a JobClient, and with it its workers", partial(kill_jobclient, of_driver=False), _lost
    ),
    Fault("host", "SIGKILL to the JobClient that hosts the driver", partial(kill_jobclient, of_driver=True), _lost),
    Fault("zookeeper", "SIGKILL to ZooKeeper, back after a while, then a resize", kill_zookeeper, _no_stop),
    Fault("expiry", "SIGSTOP to a JobClient until its session has ended, then SIGCONT", expire, _lost),
    Fault("cut", "a node loses its network, then has it again", partial(cut, of_driver=False), _lost, True),
    Fault("cut-host", "the same for the node that hosts the driver", partial(cut, of_driver=True), _lost, True),
)
FAULTS: Mapping[str, Fault] = {fault.name: fault for fault in _ALL}
