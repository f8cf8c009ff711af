"""The client of one teacher against a server that says whatever it is told to."""

import json

import numpy as np
import pytest
from canned_server import CannedServer, http

from distill import oip
from distill.errors import ConfigError, ProtocolError, TeacherRefused, TeacherUnavailable
from distill.teacher_client import TeacherClient

PIXELS = np.zeros((2, 3), np.uint8)


def infer_answer(*outputs: oip.TensorHead, body: bytes = b"") -> bytes:
    head = oip.encode(oip.InferResponse("m", outputs, parameters={oip.MODEL_HASH: "abc"}))
    return http(200, head + body, Inference_Header_Content_Length=str(len(head)))


LOGITS = np.arange(4, dtype=np.float16).reshape(2, 2)
GOOD = infer_answer(oip.binary("y", "FP16", (2, 2)), body=LOGITS.tobytes())


def test_binary_outputs_come_back_as_arrays_of_their_own() -> None:
    with CannedServer([GOOD]) as server, TeacherClient(server.url, token="secret") as client:
        outputs, head = client.infer("a model", {"x": PIXELS}, ["y"])
        assert outputs["y"].dtype == np.float16
        np.testing.assert_array_equal(outputs["y"], LOGITS)
        outputs["y"][0] = 7
        assert head.model_hash == "abc"
    assert server.requests[0].startswith(b"POST /v2/models/a%20model/infer HTTP/1.1")
    assert b"Authorization: Bearer secret" in server.requests[0]


def test_outputs_whose_values_stand_in_the_head_are_read() -> None:
    body = {"model_name": "m", "outputs": [{"name": "y", "datatype": "INT32", "shape": [2, 1], "data": [5, 6]}]}
    with CannedServer([http(200, json.dumps(body).encode())]) as server, TeacherClient(server.url) as client:
        outputs, head = client.infer("m", {"x": PIXELS})
    np.testing.assert_array_equal(outputs["y"], np.array([[5], [6]], np.int32))
    assert head.model_hash is None


@pytest.mark.parametrize(
    "answer",
    [
        http(200, b"not json"),
        http(200, b"{}"),
        infer_answer(oip.binary("y", "FP16", (2, 2)), body=b"short"),
        http(200, b"{}", Inference_Header_Content_Length="99"),
        http(200, b"{}", Inference_Header_Content_Length="-1"),
        http(200, b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP16","shape":[2],"data":["a","b"]}]}'),
        http(200, b'{"model_name":"m","outputs":[{"name":"y","datatype":"BYTES","shape":[1],"data":["a"]}]}'),
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    ],
)
def test_what_is_not_the_protocol_is_a_protocol_error(answer: bytes) -> None:
    with (
        CannedServer([answer], per_connection=1) as server,
        TeacherClient(server.url) as client,
        pytest.raises(ProtocolError),
    ):
        client.infer("m", {"x": PIXELS})


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, TeacherRefused), (401, TeacherRefused), (413, TeacherRefused), (404, TeacherRefused),
     (429, TeacherUnavailable), (503, TeacherUnavailable), (500, TeacherUnavailable)],
)  # fmt: skip
def test_statuses_are_told_apart(status: int, error: type[Exception]) -> None:
    answer = http(status, b'{"error": "because"}')
    with (
        CannedServer([answer]) as server,
        TeacherClient(server.url) as client,
        pytest.raises(error, match=rf"answered {status}: because"),
    ):
        client.infer("m", {"x": PIXELS})


def test_a_connection_that_was_closed_meanwhile_is_replaced_once() -> None:
    with CannedServer([GOOD, GOOD], per_connection=1) as server, TeacherClient(server.url) as client:
        client.infer("m", {"x": PIXELS})
        client.infer("m", {"x": PIXELS})
    assert len(server.requests) == 2


def test_a_server_that_breaks_off_on_a_new_connection_is_unavailable() -> None:
    with (
        CannedServer([None]) as server,
        TeacherClient(server.url) as client,
        pytest.raises(TeacherUnavailable, match="broke off"),
    ):
        client.infer("m", {"x": PIXELS})
    assert len(server.requests) == 1


def test_nobody_there_is_unavailable() -> None:
    with CannedServer([]) as server:
        url = server.url
    with TeacherClient(url) as client:
        assert not client.live()
        with pytest.raises(TeacherUnavailable, match="cannot be reached"):
            client.metadata("m")


def test_metadata_and_the_names_of_models_are_read() -> None:
    metadata = oip.ModelMetadata("m", (oip.TensorSpec("x", "UINT8", (-1, 3)),), parameters={"classes": 2})
    answers = [http(200, oip.encode(metadata)), http(200, b'{"name":"s","version":"1","extensions":[]}')]
    with CannedServer(answers) as server, TeacherClient(server.url) as client:
        assert client.metadata("m") == metadata
        assert client.models() == ()


@pytest.mark.parametrize("url", ["host:80", "http://host", "http://host:80/path", "ftp://h:1", "http://h:x"])
def test_a_url_that_cannot_work_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="teacher"):
        TeacherClient(url)


def test_arrays_without_a_datatype_are_refused() -> None:
    with TeacherClient("http://127.0.0.1:1") as client, pytest.raises(ProtocolError, match="complex64"):
        client.infer("m", {"x": np.zeros(2, np.complex64)})
