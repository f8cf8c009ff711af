"""Streams of a JobServer that go on when the server is lost and comes back."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from jobserver.cli.client import StreamLost

#: how long a stream that was lost is asked for again: a JobServer that starts anew is there in seconds
PATIENCE_S = 60.0
FIRST_RETRY_S = 0.2
LAST_RETRY_S = 3.0

Told = tuple[str, Any]


def lasting(begin: Callable[[], Iterator[Told]]) -> Iterator[Told]:
    """What one stream after the other tells, each from `begin`; it begins with everything, or from where that says.

    Raises StreamLost when none could be had for PATIENCE_S.
    """
    lost_at: float | None = None
    retry_s = FIRST_RETRY_S
    while True:
        try:
            for told in begin():
                lost_at, retry_s = None, FIRST_RETRY_S
                yield told
        except StreamLost:
            now = time.monotonic()
            lost_at = now if lost_at is None else lost_at
            if now - lost_at > PATIENCE_S:
                raise
            time.sleep(retry_s * random.uniform(0.5, 1.0))
            retry_s = min(2 * retry_s, LAST_RETRY_S)
