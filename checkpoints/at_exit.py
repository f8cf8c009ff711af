"""The end of the process waits for saves, and does so while all that they use still works.

The interpreter waits for threads that are no daemons, but only after `concurrent.futures` was told to take no more
work; clients of object stores look up addresses there, and a save that still needs a connection would fail.

Invariant: a thread that was given is over before that happens.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - what is registered last is called first, so it registers before us
import threading
import weakref

_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_registered = False


def wait_at_exit(thread: threading.Thread) -> None:
    """Let the end of the process wait for this thread, which is not a daemon."""
    global _registered
    _threads.add(thread)
    # Not public, but the only hook that comes before the one of concurrent.futures, which uses it, too.
    register = getattr(threading, "_register_atexit", None)
    if not _registered and register is not None:
        _registered = True
        register(_wait)


def _wait() -> None:
    for thread in list(_threads):
        thread.join()
