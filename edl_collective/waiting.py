"""Waiting for a collective without keeping a core busy.

Horovod's own wait asks again every 100 ns: on a machine with fewer cores than ranks that takes the cores away from the
ranks that are waited for (four ranks on two cores: 200,000 context switches and 1.3 cores a second). Here the pauses
grow with the time waited, so a wait is lengthened by a sixteenth of itself at most.
"""

import time
from typing import Any

import horovod.torch as hvd

SHORTEST_PAUSE_S = 20e-6
LONGEST_PAUSE_S = 1e-3
_SHARE = 16


def wait(handle: Any) -> Any:
    """The result of a collective that was started with one of Horovod's *_async functions.

    Raises HorovodInternalError when a member died.
    """
    began_s = time.perf_counter()
    while not hvd.poll(handle):
        waited_s = time.perf_counter() - began_s
        time.sleep(min(max(waited_s / _SHARE, SHORTEST_PAUSE_S), LONGEST_PAUSE_S))
    return hvd.synchronize(handle)
