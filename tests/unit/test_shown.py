"""What a large cluster is told again, and what never."""

from edl_collective.coord.clock import ManualClock
from jobserver.shown import AGAIN, Shown
from jobserver.snapshot import Snapshot


class Cluster:
    """One that changes whenever it is looked at, and takes a while to show."""

    def __init__(self, takes_s: float) -> None:
        self.clock = ManualClock(0.0)
        self.shown = Shown(self.clock)
        self.takes_s = takes_s
        self.made = 0

    def ask(self) -> bytes:
        return self.shown.answer("jobs", Snapshot, self._show)

    def _show(self, _: Snapshot) -> dict[str, object]:
        self.clock.advance(self.takes_s)
        self.made += 1
        return {"jobs": self.made}


def test_a_quick_answer_is_always_new() -> None:
    cluster = Cluster(0.001)
    assert [cluster.ask(), cluster.ask()] == [b'{"jobs":1}', b'{"jobs":2}']


def test_a_slow_one_is_given_again_for_a_while() -> None:
    cluster = Cluster(0.1)
    assert [cluster.ask(), cluster.ask()] == [b'{"jobs":1}', b'{"jobs":1}']
    cluster.clock.advance(0.1 * AGAIN)
    assert cluster.ask() == b'{"jobs":2}'


def test_after_a_change_it_is_new() -> None:
    cluster = Cluster(0.1)
    cluster.ask()
    cluster.shown.forget()
    assert cluster.ask() == b'{"jobs":2}'


def test_the_same_snapshot_is_not_shown_twice() -> None:
    cluster, snapshot = Cluster(0.001), Snapshot()
    cluster.shown.answer("jobs", lambda: snapshot, cluster._show)
    cluster.shown.answer("jobs", lambda: snapshot, cluster._show)
    assert cluster.made == 1
