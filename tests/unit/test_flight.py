"""The requests in flight: nothing is lost or doubled whatever happens, and budgets hold."""

from typing import Any

import pytest
from flight_world import A, B, C, World
from hypothesis import given
from hypothesis import strategies as st

from distill.asked import Standing
from distill.flight import Fault
from distill.source import Teacher

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("post"), st.integers(1, 3)),
        st.tuples(st.just("answer"), st.integers(0, 30)),
        st.tuples(st.just("fail"), st.integers(0, 30), st.sampled_from([f for f in Fault if f is not Fault.TIMEOUT])),
        st.tuples(st.just("time"), st.sampled_from([0.01, 0.1, 0.6, 3.0, 40.0])),
        st.tuples(st.just("name"), st.sets(st.sampled_from([A, B, C]))),
        st.tuples(st.just("probe"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("forget"), st.integers(1, 60)),
    ),
    max_size=80,
)


@given(EVENTS)
def test_each_request_is_delivered_once_whatever_happens(events: list[tuple[Any, ...]]) -> None:
    world = World(hedge_burst=2.0, first_deadline_s=5.0)
    posted, forgotten = 0, set()
    for kind, *values in events:
        if kind == "post":
            world.post(*range(posted + 1, posted + values[0] + 1))
            posted += values[0]
        elif kind in ("answer", "fail") and world.sent:
            attempt = list(world.sent)[values[0] % len(world.sent)]
            world.answer(attempt, closing=values[0] % 5 == 0) if kind == "answer" else world.fail(attempt, values[1])
        elif kind == "time":
            world.pass_time(values[0])
        elif kind == "name":
            world.name(sorted(values[0], key=lambda t: t.teacher))
        elif kind == "probe" and world.probes:
            world.probed(world.probes[values[0] % len(world.probes)], None if values[1] else "is away")
        elif kind == "forget":
            forgotten |= {values[0]} & set(world.flight.live)
            world._do(world.flight.forget([values[0]], world.now_s))
    assert world.flight.hedged <= 2 + 0.05 * posted
    world.name([A, B, C])
    for _ in range(200):  # all teachers come back, and answer
        if not world.flight.live:
            break
        for teacher in list(world.probes):
            world.probed(teacher)
        for attempt in list(world.sent):
            if attempt in world.sent:
                world.answer(attempt)
        world.pass_time(31.0 if not world.sent else 0.01)
    assert sorted(world.delivered + world.given_up + sorted(forgotten)) == list(range(1, posted + 1))


def test_requests_go_out_in_order_and_no_deeper_than_allowed() -> None:
    world = World([A], first_depth=2)
    world.post(3, 1, 2)
    assert [request for request, _ in world.sent.values()] == [3], "one, until a new teacher has answered"
    world.answer(world.at(A)[0])
    assert sorted(request for request, _ in world.sent.values()) == [1, 2]


def test_a_killed_teacher_loses_nothing_and_gets_nothing() -> None:
    world = World()
    world.warm_up()
    world.post(*range(1, 5))
    lost = [world.sent[attempt][0] for attempt in world.at(A)]
    assert lost
    for attempt in world.at(A):
        world.fail(attempt, Fault.BROKEN)
    assert not world.at(A)
    while world.sent:
        world.answer(next(iter(world.sent)))
    assert sorted(world.delivered) == [1, 2, 3, 4]
    world.pass_time(0.0)
    assert world.probes == [A], "at once: it may only have closed an idle connection"
    world.probed(A, "cannot be reached")
    world.pass_time(0.05)
    assert world.probes == [], "then with a pause"
    world.pass_time(0.1)
    assert world.probes == [A]
    world.probed(A)
    world.post(*range(5, 20))
    assert len(world.at(A)) == 1, "back, on trial"


def test_pauses_between_probes_double_and_end() -> None:
    world = World([A], longest_backoff_s=1.0)
    world.post(1)
    world.fail(world.at(A)[0], Fault.UNREACHABLE)
    waits = []
    for _ in range(7):
        began_s = world.now_s
        while not world.probes:
            world.pass_time(0.01)
        waits.append(round(world.now_s - began_s, 1))
        world.probed(A, "cannot be reached")
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert not world.flight.usable
    assert world.flight.why_not() == "a cannot be reached"


def test_a_teacher_that_stands_still_is_hedged_then_left() -> None:
    world = World()
    world.warm_up(latency_s=0.02)
    world.post(1, 2)
    (frozen,) = world.at(A)
    world.answer(world.at(B)[0])
    world.pass_time(0.049)
    assert world.flight.hedged == 0
    world.pass_time(0.002)
    assert [world.sent[attempt][0] for attempt in world.at(B)] == [world.sent[frozen][0]]
    world.answer(world.at(B)[0])
    assert sorted(world.delivered) == [1, 2]
    world.post(3, 4)
    assert len(world.at(A)) == 1, "nothing new until it answers"
    world.pass_time(2.0)
    assert not world.at(A), "given up at max(2 s, 5 x p99)"
    assert [asked.standing for asked in world.flight.asked if asked.teacher == A] == [Standing.PROBED]


def test_a_slow_teacher_that_answers_is_asked_again_and_its_late_answer_dropped() -> None:
    world = World()
    world.warm_up()
    world.post(1, 2)
    (late,) = world.at(A)
    world.answer(world.at(B)[0])
    world.pass_time(0.06)
    world.answer(world.at(B)[0])
    world.answer(late)
    assert sorted(world.delivered) == [1, 2]
    world.post(*range(3, 9))
    assert world.at(A)


def test_no_hedge_while_something_is_pending_or_the_budget_is_spent() -> None:
    world = World(hedge_burst=1.0, max_depth=2, first_depth=2)
    world.warm_up()
    world.post(*range(1, 30))
    world.pass_time(0.2)
    assert world.flight.hedged == 0
    world = World([A, B, C], hedge_burst=1.0)
    world.warm_up(requests=60)
    world.post(1, 2, 3)
    for teacher in (A, B):
        assert world.at(teacher)
    world.answer(world.at(C)[0]) if world.at(C) else None
    world.pass_time(0.2)
    assert world.flight.hedged == 1


@pytest.mark.parametrize("fault", [Fault.WRONG, Fault.REFUSED])
def test_a_request_that_all_refuse_is_given_up_with_the_reason(fault: Fault) -> None:
    world = World([A, B, C])
    world.post(1)
    asked = set()
    for _ in range(3):
        (attempt,) = world.sent
        asked.add(world.sent[attempt][1])
        world.fail(attempt, fault)
    assert asked == {A, B, C}
    assert world.given_up == [1]
    assert not world.flight.live


def test_a_teacher_that_stands_still_from_the_start_is_hedged_too() -> None:
    world = World()
    world.post(1, 2)
    world.answer(world.at(B)[0])
    world.pass_time(1.9)
    assert not world.at(B)
    world.pass_time(0.2)
    assert [world.sent[attempt][0] for attempt in world.at(B)] == [1]


@pytest.mark.parametrize("fault", [Fault.WRONG, Fault.REFUSED])
def test_a_request_is_not_given_up_before_each_teacher_was_asked(fault: Fault) -> None:
    honest = Teacher("d", "http://d:1")
    world = World([A, B, C, honest])
    world.post(1)
    while world.sent[min(world.sent)][1] != honest:
        world.fail(min(world.sent), fault)
    world.answer(min(world.sent))
    assert world.delivered == [1]


def test_a_wrong_answer_puts_a_teacher_out_though_it_lives() -> None:
    world = World()
    world.warm_up()
    world.post(1)
    (attempt,) = world.sent
    wrong = world.sent[attempt][1]
    world.fail(attempt, Fault.WRONG)
    assert not world.at(wrong)
    world.pass_time(0.0)
    world.probed(wrong)
    for number in range(2, 9):
        world.post(number)
    world.fail(world.at(wrong)[0], Fault.WRONG)
    world.pass_time(0.05)
    assert world.probes == [], "the pause grows though probes succeed"


def test_a_teacher_that_leaves_finishes_what_it_has() -> None:
    world = World()
    world.warm_up()
    world.post(*range(1, 5))
    held = world.at(A)
    world.name([B])
    world.post(5, 6)
    assert world.at(A) == held
    assert world.closed == []
    for attempt in held:
        world.answer(attempt)
    assert world.closed == [A]


def test_a_teacher_that_closes_after_an_answer_is_asked_whether_it_leaves() -> None:
    world = World([A])
    world.warm_up()
    world.post(1, 2, 3, 4)
    first, second, *_ = world.at(A)
    before = len(world.at(A))
    world.answer(first, closing=True)
    assert world.probes == [A]
    assert len(world.at(A)) == before - 1, "nothing new"
    world.answer(second, closing=True)
    assert world.probes == [A], "it is asked once"
    assert world.delivered == [1, 2], "what it has, it answers"
    world.name([A, B])
    world.probed(A, "answers 503: this teacher is leaving")
    while world.at(B):
        world.answer(world.at(B)[0])
    assert world.delivered == [1, 2, 3, 4], "the other has it all"
    assert not world.at(A)
    assert world.flight.retried == 0
    world.pass_time(1.0)
    world.probed(A)
    world.post(5, 6, 7, 8, 9)
    assert len(world.at(A)) == 1, "it serves on, and is tried"


def test_a_teacher_with_another_model_is_another_teacher() -> None:
    old, new = Teacher("a", "http://a:1", model_hash="1"), Teacher("a", "http://a:1", model_hash="2")
    world = World([old])
    world.post(1)
    world.name([new])
    world.post(2)
    assert [who.model_hash for _, who in world.sent.values()] == ["1", "2"]


def test_retries_beyond_the_budget_wait() -> None:
    world = World([A, B], retry_burst=1.0, retry_share=0.0, first_depth=4)
    world.warm_up()
    world.post(*range(1, 5))
    first = len(world.sent)
    for attempt in world.at(A) + world.at(B):
        world.fail(attempt, Fault.BROKEN)
    assert first >= 2
    assert world.flight.retried == 1
    for teacher in list(world.probes):
        world.probed(teacher)
    world.pass_time(0.0)
    for teacher in list(world.probes):
        world.probed(teacher)
    world.pass_time(0.6)
    while world.sent:
        world.answer(next(iter(world.sent)))
    assert sorted(world.delivered) == [1, 2, 3, 4]


def test_more_is_asked_of_a_teacher_that_works_on_several_at_once() -> None:
    """Latency that does not grow with the depth: rate x latency is what has to be in flight."""
    world = World([A], max_depth=8)
    world.post(*range(1, 1000))
    for _ in range(60):
        world.now_s += 0.05  # all that is there is answered together
        for attempt in world.at(A):
            world.answer(attempt)
    assert len(world.at(A)) == 8
    serial = World([A], max_depth=8)
    serial.post(*range(1, 400))
    for _ in range(200):
        serial.now_s += 0.01  # one after the other
        serial.answer(serial.at(A)[0])
    assert len(serial.at(A)) <= 4


def test_the_faster_teacher_gets_more() -> None:
    world = World([A, B])
    world.post(*range(1, 2000))
    for step in range(300):
        world.now_s += 0.01
        if world.at(A):
            world.answer(world.at(A)[0])
        if step % 5 == 0 and world.at(B):
            world.answer(world.at(B)[0])
    answers = {asked.teacher: asked.answers for asked in world.flight.asked}
    assert answers[A] > 3 * answers[B]


def test_forgotten_requests_are_not_sent_and_not_delivered() -> None:
    world = World([A])
    world.post(1, 2, 3)
    world._do(world.flight.forget([1, 2], world.now_s))
    world.answer(world.at(A)[0])
    assert world.delivered == []
    assert [request for request, _ in world.sent.values()] == [3]


def test_there_is_a_time_to_wake_for_all_that_can_happen() -> None:
    world = World()
    assert world.flight.wake_at() is None
    world.warm_up()
    world.post(1)
    assert world.flight.wake_at() == pytest.approx(world.now_s + 0.05), "the hedge"
    world.fail(next(iter(world.sent)), Fault.BROKEN)
    assert world.flight.wake_at() == pytest.approx(world.now_s), "the probe"
