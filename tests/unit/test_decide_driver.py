"""A driver that has lost its ZooKeeper session and does not come back is killed, so that the next one starts."""

from edl_collective.coord.records import JobSpec, NodeRecord, Plan
from jobclient.decide import (
    HUNG_DRIVER_S,
    Action,
    JobView,
    KillDriver,
    LocalDriver,
    StartDriver,
    View,
    decide,
    driver_died,
    driver_seen,
)

NODE = NodeRecord(node="a", incarnation="life-1", address="h", port=1, slots=2)
PLAN = Plan(revision=1, workers=(), driver_node="a", reason="why", next_worker=1, leader_epoch=1)
JOB = JobView(JobSpec(job="j", command=("x",)), PLAN)
RUNNING = LocalDriver("j", True)


def actions(driver: LocalDriver, now_s: float) -> tuple[tuple[Action, ...], float | None]:
    decision = decide(View(node=NODE, jobs={"j": JOB}, drivers=(driver,)), now_s)
    return tuple(a for a in decision.actions if isinstance(a, KillDriver | StartDriver)), decision.wake_at_s


def test_a_driver_that_was_never_seen_may_take_its_time() -> None:
    waiting = driver_seen(RUNNING, False, 1.0)
    assert waiting == RUNNING, "it may wait for its predecessor's session to end"
    assert actions(waiting, 1000.0) == ((), None)


def test_a_driver_that_comes_back_lives_on() -> None:
    missing = driver_seen(driver_seen(RUNNING, True, 1.0), False, 2.0)
    assert actions(missing, 2.0 + HUNG_DRIVER_S / 2) == ((), 2.0 + HUNG_DRIVER_S)
    assert driver_seen(missing, False, 3.0) == missing, "the time counts from the first look"
    assert actions(driver_seen(missing, True, 3.0), 1000.0) == ((), None)


def test_a_driver_that_stays_away_is_killed_and_followed() -> None:
    missing = driver_seen(driver_seen(RUNNING, True, 1.0), False, 2.0)
    killed, _ = actions(missing, 2.0 + HUNG_DRIVER_S)
    assert [type(action) for action in killed] == [KillDriver]
    dead = driver_died(missing, lived_s=100.0, now_s=8.0)
    assert dead.missing_since_s is None
    started, _ = actions(dead, dead.not_before_s)
    assert [type(action) for action in started] == [StartDriver]
