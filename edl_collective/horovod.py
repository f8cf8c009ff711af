"""A drop-in for `horovod.torch` that makes an existing Horovod elastic script one of ours.

Change `import horovod.torch as hvd` to `import edl_collective.horovod as hvd`, and start the script under a JobClient:
init() waits at the gate for a world of the job's driver, and elastic.run re-forms the world through the gate. Under
horovodrun, or alone, everything is Horovod's own. All other names are those of horovod.torch.

A notice carries the number of the generation that it ends. Horovod takes a notice only if its time is later than that
of the one before, as rank 0 knows it; generations rise for all members alike, whoever is rank 0, and clocks do not.
"""

import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import horovod.torch as _hvd
from horovod.common.exceptions import HorovodInternalError, HostsUpdatedInterrupt
from horovod.runner.elastic.worker import HostUpdateResult

from edl_collective import local
from edl_collective.worlds import GatedWorlds, Worlds


class Notices:
    """Puts the level of the notice into the state's own queue, where check_host_updates() looks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worlds: Worlds | None = None
        self._state: Any = None

    def follow(self, worlds: Worlds, state: Any) -> None:
        """From now on tell `state` when its world should change."""
        with self._lock:
            self._worlds, self._state = worlds, state

    def tell(self) -> None:
        """Called from any thread when the level may have risen, and in each new world: harmless when it has not."""
        with self._lock:
            if self._worlds is not None and self._worlds.interrupted():
                self._state.on_hosts_updated(self._worlds.generation, HostUpdateResult.mixed)


class _Process:
    """The worlds of this process once init() was called under a JobClient."""

    worlds: GatedWorlds | None = None
    notices = Notices()


def init(*args: Any, **kwargs: Any) -> None:
    """horovod.torch.init(), through the gate when this process is the worker of a JobClient."""
    local.init()
    membership = local.context().membership
    if membership is None:
        _hvd.init(*args, **kwargs)
        return
    if _Process.worlds is None:
        _Process.worlds = GatedWorlds(membership, _Process.notices.tell)
    _Process.worlds.enter()


def shutdown() -> None:
    """horovod.torch.shutdown()."""
    if _Process.worlds is None:
        _hvd.shutdown()
    else:
        _Process.worlds.exit()


def carry(train: Callable[..., Any], worlds: Worlds, notices: Notices, state: Any, *args: Any, **kwargs: Any) -> Any:
    """Call `train(state, ...)` in one world after another; `worlds` is in its first one already."""
    inside = True
    notices.follow(worlds, state)
    while True:
        try:
            if not inside:
                worlds.enter()
                inside = True
                state.on_reset()  # empties the state's queue; tell() puts the level back if it still holds
            notices.tell()
            # Always: Horovod would skip it after a pure shrink, and deadlocks when a worker joins meanwhile (#3494).
            state.sync()
            result = train(state, *args, **kwargs)
            worlds.finish()
            return result
        except HorovodInternalError:
            worlds.give_up()
            state.restore()
        except HostsUpdatedInterrupt:
            pass
        worlds.exit()
        inside = False


def _run(train: Callable[..., Any]) -> Callable[..., Any]:
    """horovod.torch.elastic.run for a function of a Horovod elastic state."""

    @functools.wraps(train)
    def through_worlds(state: Any, *args: Any, **kwargs: Any) -> Any:
        if _Process.worlds is None:
            return _hvd.elastic.run(train)(state, *args, **kwargs)
        return carry(train, _Process.worlds, _Process.notices, state, *args, **kwargs)

    return through_worlds


class _Elastic(SimpleNamespace):
    """horovod.torch.elastic with our run."""

    run = staticmethod(_run)

    def __getattr__(self, name: str) -> Any:
        return getattr(_hvd.elastic, name)


elastic = _Elastic()


def local_rank() -> int:
    """This worker's rank among those of its node, which Horovod is not told under a JobClient (topology.py)."""
    return int(_hvd.local_rank() if _place() is None else _place().local_rank)


def local_size() -> int:
    """The workers of this node."""
    return int(_hvd.local_size() if _place() is None else _place().local_size)


def cross_rank() -> int:
    """This node's rank among those that have a worker of this local rank."""
    return int(_hvd.cross_rank() if _place() is None else _place().cross_rank)


def cross_size() -> int:
    """The nodes that have a worker of this local rank."""
    return int(_hvd.cross_size() if _place() is None else _place().cross_size)


def _place() -> Any:
    return None if _Process.worlds is None or not _hvd.is_initialized() else _Process.worlds.place


def __getattr__(name: str) -> Any:
    return getattr(_hvd, name)
