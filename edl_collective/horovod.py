"""A drop-in for `horovod.torch` that makes an existing Horovod elastic script one of ours.

Change `import horovod.torch as hvd` to `import edl_collective.horovod as hvd`, and start the script under a JobClient:
init() waits at the gate for a world of the job's driver, and elastic.run re-forms the world through the gate. Under
horovodrun, or alone, everything is Horovod's own. All other names are those of horovod.torch.
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
from edl_collective.worlds import GatedWorlds


class _Gate:
    """The worlds of this process once init() was called under a JobClient."""

    def __init__(self) -> None:
        self.worlds: GatedWorlds | None = None
        self._lock = threading.Lock()
        self._state: Any = None
        self._told = 0.0

    def notice(self) -> None:
        """Put the notice into the state's own queue, where check_host_updates() looks; called from any thread."""
        with self._lock:
            if self._state is not None and self.worlds is not None and self.worlds.interrupted():
                # Horovod takes a notice only if its time is later than that of the one before.
                self._told += 1.0
                self._state.on_hosts_updated(self._told, HostUpdateResult.mixed)

    def listen(self, state: Any) -> None:
        with self._lock:
            self._state = state


_gate = _Gate()


def init(*args: Any, **kwargs: Any) -> None:
    """horovod.torch.init(), through the gate when this process is the worker of a JobClient."""
    local.init()
    membership = local.context().membership
    if membership is None:
        _hvd.init(*args, **kwargs)
        return
    if _gate.worlds is None:
        _gate.worlds = GatedWorlds(membership, _gate.notice)
    _gate.worlds.enter()


def _run(train: Callable[..., Any]) -> Callable[..., Any]:
    """horovod.torch.elastic.run for a function of a Horovod elastic state."""

    @functools.wraps(train)
    def through_worlds(state: Any, *args: Any, **kwargs: Any) -> Any:
        worlds = _gate.worlds
        if worlds is None:
            return _hvd.elastic.run(train)(state, *args, **kwargs)
        skip_sync = False
        _gate.listen(state)
        while True:
            _gate.notice()
            try:
                if not skip_sync:
                    state.sync()
                result = train(state, *args, **kwargs)
                worlds.finish()
                return result
            except HorovodInternalError:
                state.restore()
            except HostsUpdatedInterrupt:
                pass
            # Horovod would skip the sync after a pure shrink and deadlocks when a worker joins meanwhile (#3494).
            skip_sync = False
            worlds.exit()
            worlds.enter()
            # Empties the state's queue; the level of the notice is put back above if it still holds.
            state.on_reset()

    return through_worlds


class _Elastic(SimpleNamespace):
    """horovod.torch.elastic with our run."""

    run = staticmethod(_run)

    def __getattr__(self, name: str) -> Any:
        return getattr(_hvd.elastic, name)


elastic = _Elastic()


def __getattr__(name: str) -> Any:
    return getattr(_hvd, name)
