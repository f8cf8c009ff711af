"""How a worker enters a world, learns that it is to change, and leaves it; one class for each launcher.

`enter` returns with Horovod initialised and `exit` shuts it down, so between them rank and size hold. Notices are
levels: `interrupted` stays true until the next `enter`. Nothing here knows about models or data.
"""

import atexit
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from edl_collective.abort import AbortSwitch, inside_horovod
from edl_collective.agent_link import AgentLink
from edl_collective.context import Context, Launcher, Membership
from edl_collective.gloo_loops import GlooLoops
from edl_collective.held import Held
from edl_collective.messages import Assigned, Happened, Leave, Report
from edl_collective.phases import Phases
from edl_collective.topology import place_for_horovod

logger = logging.getLogger(__name__)

#: exit status of a worker that was told to leave; its JobClient knows that it was told
LEFT_STATUS = 0


class Left(SystemExit):
    """Raised at the gate when this worker is to leave. `last`: nobody goes on with the training state, for now."""

    def __init__(self, *, last: bool) -> None:
        super().__init__(LEFT_STATUS)
        self.last = last


class Worlds(Protocol):
    """The worlds that this process is in, one after another."""

    #: why the present world was formed, for people
    cause: str
    #: epoch of the driver that formed it, 0 where no driver of ours does
    driver_epoch: int
    #: place in the present world as the driver gave it; None where no driver of ours does: Horovod knows it then
    place: Assigned | None
    #: when the change from the former world to the present one did what, for people
    phases: Phases
    #: what the node holds in memory between two worlds, None where nobody keeps it
    held: Held | None

    @property
    def generation(self) -> int | None:
        """Number of the present world; None where nobody counts: the members then agree on one."""

    def enter(self) -> None:
        """Wait for a place in the next world and initialise Horovod. Raises Left when told to leave."""

    def exit(self) -> None:
        """Shut Horovod down; harmless when a collective has failed."""

    def interrupted(self) -> bool:
        """True when the world should change at the next step boundary. Costs nothing: called on each step."""

    def give_up(self) -> None:
        """A collective failed: those under way cannot complete; call before exit()."""

    def finish(self) -> None:
        """The training function returned: what follows is no failure."""

    def report(self, report: Report) -> None: ...

    def happened(self, event: Happened) -> None: ...


def worlds_of(context: Context) -> Worlds:
    """The worlds that the launcher of this process offers."""
    if context.membership is not None:
        return GatedWorlds(context.membership)
    return HorovodrunWorlds() if context.launcher is Launcher.HOROVODRUN_ELASTIC else FixedWorld()


def warm() -> None:
    """Do before the gate what a worker would otherwise do while the others wait for it."""
    import horovod.torch  # noqa: F401
    import torch

    # The first optimizer of a process imports about a second's worth of modules.
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


class _LocalReports:
    """For launchers without a JobClient: what happens is logged by rank 0."""

    place: Assigned | None = None
    phases = Phases(time.monotonic)

    held: Held | None = None

    def give_up(self) -> None:
        return None  # without our sockets' numbers there is nothing to cut

    def report(self, report: Report) -> None:
        logger.debug("%s", report)

    def happened(self, event: Happened) -> None:
        logger.info("%s", event.text)


class FixedWorld(_LocalReports):
    """One world that never changes: the script alone, or under horovodrun -np N or mpirun."""

    cause = "start"
    driver_epoch = 0
    generation: int | None = None

    def __init__(self) -> None:
        self._entered = False

    def enter(self) -> None:
        import horovod.torch as hvd

        if self._entered:
            raise SystemExit(
                "a collective failed and this job's world is fixed: start it under a JobClient or "
                "horovodrun --min-np --max-np to survive that"
            )
        self._entered = True
        hvd.init()
        self.phases.end("init")

    def exit(self) -> None:
        import horovod.torch as hvd

        hvd.shutdown()

    def interrupted(self) -> bool:
        return False

    def finish(self) -> None:
        return None


class HorovodrunWorlds(_LocalReports):
    """Worlds formed by horovodrun's own elastic driver, which notifies through Horovod's listener interface."""

    driver_epoch = 0
    generation: int | None = None

    def __init__(self) -> None:
        from horovod.common.elastic import notification_manager

        self._notices = 0
        self.cause = ""
        notification_manager.init()
        notification_manager.register_listener(self)

    def enter(self) -> None:
        import horovod.torch as hvd

        # Before init(): a notice that comes while the world forms may be about the next one, and is not repeated.
        self._notices = 0
        hvd.init()
        self.phases.end("init")
        self.cause = "hosts changed" if self.cause else "start"

    def exit(self) -> None:
        import horovod.torch as hvd

        hvd.shutdown()
        self.phases.end("shutdown")

    def interrupted(self) -> bool:
        return self._notices > 0

    def on_hosts_updated(self, _timestamp: float, _result: Any) -> None:
        """Called by Horovod from a thread of its own."""
        self._notices += 1

    def finish(self) -> None:
        from horovod.common.elastic import notification_manager

        notification_manager.remove_listener(self)


class GatedWorlds:
    """Worlds formed by the driver of the job; this worker waits for them at the gate of its JobClient."""

    def __init__(self, membership: Membership, on_interrupt: Callable[[], None] = lambda: None) -> None:
        self._generation = 0
        self.cause = ""
        self.driver_epoch = 0
        #: this worker's place in the present world, or the last one; Horovod does not know all of it (topology.py)
        self.place: Assigned | None = None
        self.phases = Phases(time.monotonic)
        self._membership = membership
        self._loops = GlooLoops(membership.gloo_loops)
        self._abort_switch = AbortSwitch()
        self.held: Held | None = None
        if membership.held_dir is not None:
            self.held = Held(Path(membership.held_dir), membership.held_share)
        self._link = AgentLink(membership, on_interrupt, self._abort)

    @property
    def generation(self) -> int | None:
        return self._generation

    def enter(self) -> None:
        import horovod.torch as hvd

        warm()
        answer = self._link.gate(self._generation)
        self.phases.end("gate")
        if isinstance(answer, Leave):
            logger.info("leaving the job: %s", answer.reason or "its plan has no place for this worker")
            # Not before the process ends: a checkpoint that is being written is told when it is durable.
            atexit.register(self._link.close)
            raise Left(last=answer.last)
        # Named at the next gate even if init() fails below: this generation was assigned, the next one is wanted.
        self._generation, self.cause, self.driver_epoch = answer.generation, answer.cause, answer.epoch
        self.place = answer
        # Horovod's C++ reads these at each init and appends ":<port>" to the address, here to the end of a path.
        os.environ.update(
            place_for_horovod(answer, self._membership.node, self._membership.worker, os.environ),
            HOROVOD_GLOO_RENDEZVOUS_ADDR=answer.rendezvous,
            HOROVOD_GLOO_RENDEZVOUS_PORT="0",
        )
        if self.held is not None:
            self.held.carry(answer.generation)
        self._abort_switch.begin_init()
        with self._loops.turning(making=True):
            hvd.init()
        self._abort_switch.arm(answer.generation)
        self._link.running(self._generation)
        self.phases.end("init")

    def exit(self) -> None:
        import horovod.torch as hvd

        self._abort_switch.disarm()
        with self._loops.turning(making=False):
            hvd.shutdown()
        self.phases.end("shutdown")

    def _abort(self, generation: int) -> bool:
        self._abort_switch.abort(generation)
        return inside_horovod()

    def give_up(self) -> None:
        # Horovod's thread goes on to its next agreement after a failed reduction. hvd.shutdown() joins it, and would
        # wait for gloo's time-out where the others have failed, too, and an abort that comes then finds nothing to cut.
        self._abort_switch.abort(self._generation)

    def interrupted(self) -> bool:
        return self._link.interrupted_generation >= self._generation

    def finish(self) -> None:
        self._link.finished(self._generation)

    def report(self, report: Report) -> None:
        self._link.report(report)

    def happened(self, event: Happened) -> None:
        self._link.happened(event)
