"""run: the loop that carries a training function from one world to the next.

A call of the function lasts as long as its world. It ends by returning (the job is done), by WorldChanged at a step
boundary, or by HorovodInternalError inside a collective; after the last two the world is re-formed, the state made
equal and the function called again.
"""

import functools
import logging
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from edl_collective import local
from edl_collective.errors import FruitlessWorlds, WorldChanged
from edl_collective.worlds import Left, Worlds, worlds_of

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


#: worlds in a row that failed before a step was completed, after which the fault is not a lost member
MAX_FRUITLESS_WORLDS = 20


class Elastic(Protocol):
    """A state that run() can carry from world to world."""

    @property
    def global_step(self) -> int: ...

    def prepare(self) -> None: ...

    def enter(self, worlds: Worlds) -> None: ...

    def leave_world(self) -> None: ...

    def keep(self) -> None: ...


S = TypeVar("S", bound=Elastic)


def run(train: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Make `train(state, ...)` elastic: called in each world anew, with the state equal on every rank.

    The call blocks at the gate until this worker has a place. It returns what `train` returns; a worker that is told
    to leave exits with status 0 instead. Raises NotInitialised before init(), and whatever `train` raises.
    """

    @functools.wraps(train)
    def through_worlds(state: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return carry(train, worlds_of(local.begin_run()), state, *args, **kwargs)

    return through_worlds


def carry(train: Callable[Concatenate[S, P], R], worlds: Worlds, state: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `train(state, ...)` in one world of `worlds` after another, until it returns or raises.

    Raises FruitlessWorlds when collectives fail again and again without a step between.
    """
    failures, step = 0, 0
    state.prepare()
    try:
        while True:
            try:
                _enter(worlds, state)
                local.enter_world(worlds.place)
                state.enter(worlds)
                result = train(state, *args, **kwargs)
                worlds.finish()
                return result
            except WorldChanged:
                logger.info("the world changes at a step boundary")
            except _collective_failure() as error:
                reason = next(iter(str(error).splitlines()), "no reason given")
                logger.warning("a collective failed, re-forming the world: %s", reason)
                worlds.give_up()
                failures, step = (failures + 1, step) if state.global_step == step else (1, state.global_step)
                if failures == MAX_FRUITLESS_WORLDS:
                    raise FruitlessWorlds(failures, reason) from error
            local.exit_world()
            worlds.exit()
            state.leave_world()
    finally:
        local.exit_world()
        worlds.exit()


def _enter(worlds: Worlds, state: Elastic) -> None:
    try:
        worlds.enter()
    except Left as left:
        if left.last:
            state.keep()
        raise


def _collective_failure() -> type[Exception]:
    from horovod.common.exceptions import HorovodInternalError

    failure: type[Exception] = HorovodInternalError
    return failure
