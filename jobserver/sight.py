"""Whether what is not in ZooKeeper may be taken for gone.

An ephemeral is there as long as its owner's session. After an outage that ended sessions, nodes that are well are
missing until they have registered again, and whoever looks first would bury them. So absence is judged only by who has
seen ZooKeeper without interruption for some time, longer than nodes need to come back.
"""

import threading

from edl_collective.coord.clock import Clock
from edl_collective.coord.store import Session, Store


class Sight:
    """Since when this process has seen `store` without interruption.

    settle_s: how long after an interruption, or the start of this process, absence means nothing.
    """

    def __init__(self, store: Store, clock: Clock, settle_s: float) -> None:
        self._clock = clock
        self._settle_s = settle_s
        self._lock = threading.Lock()
        #: None while it is interrupted: said before the next CONNECTED, whoever asks first
        self._since_s: float | None = None
        self._end_listener = store.on_session(self._session_changed)
        if store.session is Session.CONNECTED:
            self._session_changed(Session.CONNECTED)

    @property
    def unsettled_s(self) -> float:
        """Seconds until absence means something; 0 if it does now."""
        with self._lock:
            if self._since_s is None:
                return self._settle_s
            return max(0.0, self._since_s + self._settle_s - self._clock.monotonic_s())

    def close(self) -> None:
        self._end_listener()

    def _session_changed(self, session: Session) -> None:
        with self._lock:
            self._since_s = self._clock.monotonic_s() if session is Session.CONNECTED else None
