"""A time limit for calls of clients that have none of their own.

Invariant: `within` returns or raises within its limit. A call that does not come back is left to its thread, which is
a daemon, so that it does not keep the process from ending; what it returns later is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Longest wait for one call. hdfs-native was seen to wait for ever when a DataNode died under a write; the saver then
#: writes the file again.
CALL_TIMEOUT_S = 30.0


def within(timeout_s: float, what: Callable[[], T]) -> T:
    """The result of `what()`, run in a thread of its own.

    Raises:
        TimeoutError: after timeout_s.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(what())
        except BaseException as error:  # handed to the caller below
            failure.append(error)

    thread = threading.Thread(target=run, name="checkpoint-call", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no answer within {timeout_s:.0f} s")
    return outcome[0]
