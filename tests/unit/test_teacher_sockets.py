"""A teacher server against requests of every manner, on real sockets: what is none is answered 4xx, and it lives."""

import json
import socket
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from teacher_models import ids_of
from teacher_thread import TeacherThread
from teacher_wire import INFER, answered_ids, images, read_answer, request

from distill.errors import TeacherRefused
from distill.teacher.connection import MAX_DROPPED_BYTES


@pytest.fixture(scope="module")
def teacher() -> Iterator[TeacherThread]:
    with TeacherThread(max_body_mb=1, batch_delay_ms=0.0) as found:
        yield found


def test_answers_are_those_of_the_samples(teacher: TeacherThread) -> None:
    with teacher.client() as client:
        for rows in (1, 3, 64, 65, 200):
            outputs, head = client.infer("identity", {"image": images(*range(rows))}, ["output"])
            assert ids_of(outputs["output"]) == list(range(rows))
            assert head.model_hash == teacher.service.identity.model_hash


def test_requests_in_one_packet_are_answered_in_order(teacher: TeacherThread) -> None:
    with teacher.connect() as connection:
        connection.sendall(request(1) + b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n" + request(2, 3) + request(4))
        assert answered_ids(read_answer(connection)) == [1]
        assert read_answer(connection)[0] == 200
        assert answered_ids(read_answer(connection)) == [2, 3]
        assert answered_ids(read_answer(connection)) == [4]


def test_many_small_requests_in_one_packet(teacher: TeacherThread) -> None:
    with teacher.connect() as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n" * 300)
        assert [read_answer(connection)[0] for _ in range(300)] == [200] * 300


def test_a_request_may_come_byte_by_byte(teacher: TeacherThread) -> None:
    with teacher.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        whole = request(70000)
        for place in range(0, len(whole), 7):
            connection.sendall(whole[place : place + 7])
        assert answered_ids(read_answer(connection)) == [70000]


def test_a_client_that_expects_to_be_told_to_go_on_is_told(teacher: TeacherThread) -> None:
    head, _, body = request(5, expect=True).partition(b"\r\n\r\n")
    with teacher.connect() as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert read_answer(connection)[0] == 100
        connection.sendall(body)
        assert answered_ids(read_answer(connection)) == [5]


def test_connection_close_is_kept(teacher: TeacherThread) -> None:
    with teacher.connect() as connection:
        connection.sendall(request(5, close=True))
        status, headers, _ = read_answer(connection)
        assert (status, headers["connection"]) == (200, "close")
        assert connection.recv(1) == b""


def test_a_request_that_is_too_large_is_told_so_before_and_while_it_comes(teacher: TeacherThread) -> None:
    with teacher.client() as client, pytest.raises(TeacherRefused, match=r"answered 413: .*--max-body-mb"):
        client.infer("identity", {"image": np.zeros((40000, 3, 8, 8), np.uint8)})
    with teacher.connect() as connection:  # all of it is read, so that no reset overtakes the answer
        size = 8 * 1024 * 1024
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(size))
        assert read_answer(connection)[0] == 413
    assert size < MAX_DROPPED_BYTES


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 404),
        (b"GET /nothing HTTP/1.1\r\nHost: t\r\n\r\n", 404),
        (b"GET /v2/models/other HTTP/1.1\r\nHost: t\r\n\r\n", 404),
        (b"GET /v2/models/identity/versions/2 HTTP/1.1\r\nHost: t\r\n\r\n", 404),
        (b"GET http://[/ HTTP/1.1\r\nHost: t\r\n\r\n", 404),
        (b"DELETE /v2/models/identity HTTP/1.1\r\nHost: t\r\n\r\n", 405),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: 1\r\nContent-Encoding: gzip\r\n\r\n1", 415),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: 9\r\nExpect: miracles\r\n\r\n123456789", 417),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: 1\r\n"
         b"Inference-Header-Content-Length: 2\r\n\r\n1", 400),
        (b"GET /v2 HTTP/1.1\r\nX: " + b"x" * 20000 + b"\r\n\r\n", 431),
        (b"x" * 40000, 431),
        (b"GET /v2 HTTP/1.1\r\nContent-Length: 99999\r\n\r\n", 413),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(teacher: TeacherThread, text: bytes, status: int) -> None:
    with teacher.connect() as connection:
        connection.sendall(text)
        found, _, body = read_answer(connection)
        assert found == status, body
        assert json.loads(body)["error"]


def head(**changes: object) -> dict[str, object]:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 3, 8, 8], "data": [0] * 192}
    return {"inputs": [{**tensor, **changes}]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "not an Open Inference Protocol"),
        ({"inputs": []}, "no inputs"),
        (head(name="x"), "'x' is none of them; 'image' is missing"),
        (head(datatype="FP32"), "is UINT8, not FP32"),
        (head(datatype="BYTES"), "'BYTES' is unknown"),
        (head(shape=[1, 3, 8, 9]), "has the shape"),
        (head(shape=[192]), "has the shape"),
        (head(shape=[-1, 3, 8, 8]), "must not be negative"),
        (head(shape=[0, 3, 8, 8], data=[]), "send at least one sample"),
        (head(data=[0] * 191), "are not UINT8 of"),
        (head(data=["a"] * 192), "are not UINT8 of"),
        (head(data=[300] * 192), "are not UINT8 of"),
        (head(data=None), "neither data nor binary_data_size"),
        (head(parameters={"binary_data_size": 192}), "192 bytes and 0 bytes follow"),
        (head(parameters={"binary_data_size": "many"}), "binary_data_size says 'many'"),
        ({"inputs": head()["inputs"] * 2}, "names an input twice"),  # type: ignore[operator]
        ({**head(), "outputs": [{"name": "y"}]}, "no output 'y'"),
        ({**head(), "outputs": [{"name": "output"}, {"name": "output"}]}, "output twice"),
        ({**head(), "outputs": [{"name": "output", "parameters": {"top_k": 11}}]}, "from 1 to 10"),
        ({**head(), "outputs": [{"name": "output", "parameters": {"top_k": "2"}}]}, "from 1 to 10"),
        ({**head(), "outputs": [{"name": "output", "parameters": {"classification": 2}}]}, "classification"),
    ],
)
def test_a_request_that_does_not_fit_the_model_is_told_why(teacher: TeacherThread, body: object, words: str) -> None:
    status, answer = teacher.http("POST", INFER, json.dumps(body).encode())
    assert status == 400
    assert words in json.loads(answer)["error"]


def test_values_in_the_head_are_answered_in_the_head(teacher: TeacherThread) -> None:
    status, answer = teacher.http("POST", INFER, json.dumps(head(data=images(9).tolist())).encode())
    assert status == 200
    [output] = json.loads(answer)["outputs"]
    assert (output["datatype"], output["shape"], output["data"][:4]) == ("FP16", [1, 10], [9.0, 0.0, 0.0, 0.0])


def assert_alive(teacher: TeacherThread) -> None:
    with teacher.client(timeout_s=10.0) as client:
        assert ids_of(client.infer("identity", {"image": images(7)})[0]["output"]) == [7]


fuzz = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def send_and_leave(teacher: TeacherThread, text: bytes) -> None:
    """Send, and read until the server has closed; an answer that comes must be an error, or to something that fits."""
    with teacher.connect() as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while more := connection.recv(65536):
            answer += more
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200", b"HTTP/1.1 100")), answer[:100]


@fuzz
@given(st.binary(max_size=300))
def test_any_bytes(teacher: TeacherThread, text: bytes) -> None:
    send_and_leave(teacher, text + b"\r\n\r\n")
    assert_alive(teacher)


@fuzz
@given(st.data())
def test_a_request_with_bytes_changed(teacher: TeacherThread, data: st.DataObject) -> None:
    whole = bytearray(request(3))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    send_and_leave(teacher, bytes(whole[: data.draw(st.integers(1, len(whole)))]))
    assert_alive(teacher)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@fuzz
@given(values, values, values, values)
def test_any_json(teacher: TeacherThread, shape: object, data: object, parameters: object, outputs: object) -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": shape, "data": data, "parameters": parameters}
    text = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    status, _ = teacher.http("POST", INFER, text, Inference_Header_Content_Length=str(len(text)))
    assert status == 400
    assert_alive(teacher)
