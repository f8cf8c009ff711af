"""The process-local part of the library: init(), the device, and rank and size while there is a world."""

import logging
import os
from typing import Any

import torch

from edl_collective.context import Context, Launcher, read_context
from edl_collective.errors import NotInitialised, NotInWorld, RunTwice
from edl_collective.messages import Assigned
from edl_collective.randomness import reseed, seed_all

logger = logging.getLogger(__name__)


class _Local:
    """What init() found out; one per process."""

    context: Context | None = None
    seed: int | None = None
    in_world: bool = False
    #: where a driver of ours put this worker; Horovod then does not know its local rank
    place: Assigned | None = None
    ran: bool = False


def init(*, seed: int | None = None) -> None:
    """Prepare this process, alone: threads, device, seeds. No other process is waited for; that is run()'s gate.

    seed: seeds torch, numpy and Python's random, the same on every worker, so that all begin with equal parameters
    (which are made equal at the first step in any case); each world and each epoch then begins with numbers of its own
    on each rank (randomness.py). None leaves them alone.
    Raises ValueError when the environment of a JobClient is incomplete.
    """
    from edl_collective.shadowing import check_not_shadowed

    check_not_shadowed()
    context = read_context(os.environ)
    if context.threads is not None:
        torch.set_num_threads(context.threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(context.device_index)
    if seed is not None:
        seed_all(seed)
    _Local.context, _Local.seed = context, seed
    logger.debug("initialised: %s", context)


def context() -> Context:
    """What init() read. Raises NotInitialised."""
    if _Local.context is None:
        raise NotInitialised
    return _Local.context


def reseed_at(step: int, rank: int) -> None:
    """Begin with the random numbers of `rank` after `step` completed steps, if init() was given a seed."""
    if _Local.seed is not None:
        reseed(_Local.seed, step, rank)


def device() -> torch.device:
    """The device of this worker: the GPU of its slot, else the CPU. Raises NotInitialised."""
    index = context().device_index
    return torch.device("cuda", index) if torch.cuda.is_available() else torch.device("cpu")


def checkpoint_url() -> str | None:
    """The checkpoint URL of the job's spec, None if it has none. Raises NotInitialised."""
    return context().checkpoint_url


def begin_run() -> Context:
    """The context for the one run of this process. Raises NotInitialised, RunTwice.

    A second run would ask for the world that the first one has finished. Only a fixed world may begin anew.
    """
    found = context()
    if _Local.ran and found.launcher is not Launcher.FIXED:
        raise RunTwice
    _Local.ran = True
    return found


def enter_world(place: Assigned | None = None) -> None:
    _Local.in_world, _Local.place = True, place


def exit_world() -> None:
    _Local.in_world = False


def rank() -> int:
    """This worker's rank in the present world. Raises NotInWorld before the gate."""
    return int(_horovod("rank()").rank())


def size() -> int:
    """Workers in the present world. Raises NotInWorld before the gate."""
    return int(_horovod("size()").size())


def local_rank() -> int:
    """This worker's rank among those of its node. Raises NotInWorld before the gate."""
    horovod = _horovod("local_rank()")
    return int(horovod.local_rank()) if _Local.place is None else _Local.place.local_rank


def _horovod(what: str) -> Any:
    if not _Local.in_world:
        raise NotInWorld(what)
    import horovod.torch as hvd

    return hvd
