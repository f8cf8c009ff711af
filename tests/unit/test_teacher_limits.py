"""A teacher server at its limits: clients that dawdle, too many, too much memory, and the end of its service."""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from teacher_models import GATE
from teacher_thread import TeacherThread
from teacher_wire import INFER, answered_ids, images, read_answer, request

from distill.errors import TeacherUnavailable
from distill.teacher.connection import HEAD_TIMEOUT_S
from distill.teacher.server import GRACE_S, IDLE_S, LEAVING_SWEEP_S, Limits
from edl_collective.coord.clock import ManualClock

#: for what another thread does, however busy the machine is
WAIT_S = 60.0


def wait_until(true: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)  # the server's thread tells nobody


def test_clients_that_dawdle_are_let_go() -> None:
    clock = ManualClock(1000.0)
    with TeacherThread(clock=clock, limits=Limits(idle_timeout_s=60.0)) as teacher:
        begun, idle, body = teacher.connect(), teacher.connect(), teacher.connect()
        with begun, idle, body:
            part = request(1)[:-10]
            begun.sendall(b"GET /v2 HT")
            body.sendall(part)
            wait_until(lambda: teacher.service.engine.stats.received_bytes == len(b"GET /v2 HT") + len(part))
            wait_until(lambda: teacher.service.connections() == 3)
            assert not select.select([begun, body], [], [], 0.1)[0]
            clock.advance(HEAD_TIMEOUT_S + 1.0)
            assert read_answer(begun)[0] == 408
            assert idle.recv(1) == b""  # said nothing at all
            assert read_answer(body)[0] == 408


def test_a_body_that_stands_still_is_let_go_however_large_it_would_be() -> None:
    clock = ManualClock(1000.0)
    with TeacherThread(clock=clock) as teacher, teacher.connect() as slow, teacher.connect() as still:
        head = f"POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: {60 << 20}\r\n\r\n".encode()
        still.sendall(head)
        slow.sendall(head + bytes(4 << 20))
        with teacher.client() as client:
            wait_until(
                lambda: client.live() and teacher.service.engine.stats.received_bytes >= 3 << 20
            )  # woken for each MB
            clock.advance(HEAD_TIMEOUT_S + 1.0)
            assert read_answer(still)[0] == 408
            assert not select.select([slow], [], [], 0.1)[0], "it is as fast as it must be"
            clock.advance(16.0)
            assert read_answer(slow)[0] == 408
            wait_until(lambda: client.live() and not teacher.server.buffers.used_bytes)


def test_beyond_the_limit_connections_are_told_so() -> None:
    with TeacherThread(limits=Limits(max_connections=2)) as teacher:
        with teacher.connect() as one, teacher.connect() as two:
            for connection in (one, two):
                connection.sendall(request(1))
                assert answered_ids(read_answer(connection)) == [1]
            with teacher.connect() as three:
                assert read_answer(three)[0] == 503
            assert b"edl_teacher_connections" in metrics_over(one)
        with teacher.client() as client:
            wait_until(client.live)  # the server has seen that they left


def test_connections_that_are_only_held_make_room() -> None:
    clock = ManualClock(1000.0)
    with (
        TeacherThread(clock=clock, limits=Limits(max_connections=2)) as teacher,
        teacher.connect() as held,
        teacher.connect() as used,
    ):
        for connection in (held, used, used):  # with the third request at the latest the loop knows that `held` is idle
            connection.sendall(request(1))
            assert answered_ids(read_answer(connection)) == [1]
        clock.advance(IDLE_S + 1.0)
        used.sendall(request(2))
        assert answered_ids(read_answer(used)) == [2]
        with teacher.connect() as three:
            three.sendall(request(3))
            assert answered_ids(read_answer(three)) == [3]
            assert held.recv(1) == b"", "the one that was idle for longest"
            with teacher.connect() as four:
                assert read_answer(four)[0] == 503, "both are in use"


def metrics_over(connection: socket.socket) -> bytes:
    connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
    return read_answer(connection)[2]


def test_requests_that_would_take_too_much_memory_are_sent_elsewhere() -> None:
    with TeacherThread(limits=Limits(max_memory_bytes=128 * 1024)) as teacher, teacher.connect() as slow:
        slow.sendall(request(*range(500))[:-1])  # 96 KB are waited for
        with teacher.client() as client:
            wait_until(lambda: client.live() and teacher.server.buffers.used_bytes)
            with pytest.raises(TeacherUnavailable, match="--max-memory-mb"):
                client.infer("identity", {"image": images(*range(500))})
        slow.sendall(b"\0")
        assert answered_ids(read_answer(slow)) == list(range(500))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    yield GATE
    GATE.set()


def test_a_request_whose_client_left_is_not_run(gate: threading.Event) -> None:
    with TeacherThread("teacher_models:gated", name="identity", max_batch=1, batch_delay_ms=0.0) as teacher:
        engine = teacher.service.engine
        gate.clear()
        with teacher.connect() as first, teacher.connect() as second:
            first.sendall(request(1))
            wait_until(lambda: engine.stuck_s() > 0)  # the model has the first, so the second waits
            second.sendall(request(2))
            wait_until(lambda: engine.queue_length == 1)
            second.close()
            with teacher.client() as client:
                assert client.live()  # so the server has seen that the second left
            gate.set()
            assert answered_ids(read_answer(first)) == [1]
        with teacher.client() as client:
            client.infer("identity", {"image": images(3)})
        assert engine.stats.totals().samples == 2


def test_one_bad_sample_fails_only_its_own_request() -> None:
    arguments = {"fail_on": 13, "delay_s": 0.05}
    with (
        TeacherThread(model_args=arguments, batch_delay_ms=100.0, max_batch=3) as teacher,
        teacher.connect() as good,
        teacher.connect() as bad,
        teacher.connect() as other,
    ):
        for connection, sample in ((good, 1), (bad, 13), (other, 2)):
            connection.sendall(request(sample))
        assert answered_ids(read_answer(good)) == [1]
        status, _, body = read_answer(bad)
        assert (status, "begins with 13" in body.decode()) == (500, True)
        assert answered_ids(read_answer(other)) == [2]


def test_leaving_answers_what_is_there_and_refuses_what_comes_late(gate: threading.Event) -> None:
    clock = ManualClock(1000.0)
    with (
        TeacherThread("teacher_models:gated", name="identity", clock=clock) as teacher,
        teacher.connect() as asked,
        teacher.connect() as soon,
        teacher.connect() as late,
    ):
        gate.clear()
        asked.sendall(request(1))
        wait_until(lambda: teacher.service.engine.stuck_s() > 0)
        teacher.server.leave()
        wait_until(lambda: teacher.service.leaving)
        with teacher.client() as client:
            assert client.live()
            assert not client.ready()
        soon.sendall(request(3))
        wait_until(lambda: teacher.service.engine.queue_length == 1)
        clock.advance(GRACE_S + 0.1)
        wait_until(lambda: teacher.service.refusing)
        late.sendall(request(2))
        assert read_answer(late)[0] == 503
        gate.set()
        status, headers, _ = answer = read_answer(asked)
        assert (status, headers["connection"], answered_ids(answer)) == (200, "close", [1])
        assert answered_ids(read_answer(soon)) == [3]
        while not teacher.join(0.02):
            clock.advance(LEAVING_SWEEP_S)
        assert clock.monotonic_s() < 1000.0 + Limits().drain_timeout_s, "it was done, and did not wait for its deadline"


def test_leaving_ends_by_its_deadline(gate: threading.Event) -> None:
    limits = Limits(drain_timeout_s=0.2)
    with TeacherThread("teacher_models:gated", name="identity", limits=limits) as teacher, teacher.connect() as asked:
        gate.clear()
        asked.sendall(request(1))
        wait_until(lambda: teacher.service.engine.stuck_s() > 0)
        teacher.server.leave()
        assert teacher.join(WAIT_S)
        teacher.breaks_off = True
        gate.set()
