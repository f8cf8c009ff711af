"""A teacher's place in ZooKeeper: there while it serves, gone when it does not, and never another's."""

import time
from collections.abc import Callable

import numpy as np
import pytest
from canned_server import CannedServer, http

from distill import oip
from distill.errors import ConfigError
from distill.records import TeacherRecord
from distill.teacher.register import Foreign, Prober, only_model, zeros
from distill.teacher.registration import Registration
from distill.teacher_client import TeacherClient
from edl_collective.coord.memory_store import MemoryStore, MemoryTree
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import decode

PATH = Paths().teacher("s", "t")


def record(queue: int = 0) -> TeacherRecord:
    return TeacherRecord(teacher="t", url="http://h:1", model="m", queue=queue)


def registration(store: MemoryStore, wanted: Callable[[], TeacherRecord | None] = lambda: None) -> Registration:
    return Registration(store, Paths(), "s", "t", wanted)


def listed(store: MemoryStore) -> TeacherRecord | None:
    found = store.get(PATH)
    return None if found is None else decode(found.data, TeacherRecord, PATH)


def test_what_is_wanted_comes_to_be_there() -> None:
    store = MemoryStore()
    own = registration(store)
    for wanted in (record(), record(), record(3), None, None, record(4)):
        assert own.look(wanted) is None
        assert listed(store) == wanted
    found = store.get(PATH)
    assert found is not None
    assert found.owner == store.session_id


def test_nothing_is_written_that_is_there_already() -> None:
    store = MemoryStore()
    own = registration(store)
    for _ in range(3):
        own.look(record())
    found = store.get(PATH)
    assert found is not None
    assert found.version == 0


def test_the_place_of_another_session_is_left_alone_until_it_is_gone() -> None:
    tree = MemoryTree()
    dead, store = MemoryStore(tree), MemoryStore(tree)
    registration(dead).look(record(1))
    own = registration(store)
    assert "another session" in (own.look(record(2)) or "")
    assert own.look(None) is not None
    assert listed(store) == record(1)
    dead.close()
    assert own.look(record(2)) is None
    assert listed(store) == record(2)


def wait_for(store: MemoryStore, wanted: TeacherRecord | None) -> None:
    deadline_s = time.monotonic() + 60.0
    while listed(store) != wanted:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_a_lost_session_is_followed_by_a_new_registration() -> None:
    tree = MemoryTree()
    store, observer = MemoryStore(tree), MemoryStore(tree)
    wanted: list[TeacherRecord | None] = [record()]
    own = registration(store, lambda: wanted[0])
    own.start()
    wait_for(observer, record())
    store.expire()
    wait_for(observer, None)
    store.resume()
    wait_for(observer, record())
    wanted[0] = None
    own.wake()
    wait_for(observer, None)
    wanted[0] = record(1)
    own.wake()
    wait_for(observer, record(1))
    own.close()
    assert listed(observer) is None


METADATA = http(
    200,
    oip.encode(
        oip.ModelMetadata("m", (oip.TensorSpec("x", "UINT8", (-1, 3)),), (oip.TensorSpec("y", "FP32", (-1, 4)),))
    ),
)


def answer(name: str = "y") -> bytes:
    head = oip.encode(oip.InferResponse("m", (oip.binary(name, "FP32", (1, 4)),)))
    return http(200, head + bytes(16), Inference_Header_Content_Length=str(len(head)))


def prober(client: TeacherClient, url: str) -> Prober:
    return Prober(client, Foreign("t", url, "m", 100.0, 1.0))


def test_a_foreign_server_is_listed_while_it_answers() -> None:
    refusal = http(503, b'{"error": "busy"}')
    answers = [METADATA, answer(), METADATA, refusal, refusal, METADATA, answer()]
    with CannedServer(answers) as server, TeacherClient(server.url) as client:
        found = prober(client, server.url)
        assert found.check() is None
        listed_then = found.record()
        assert listed_then is not None
        assert (listed_then.classes, listed_then.model_hash, listed_then.rate) == (4, None, 100.0)
        for _ in range(2):
            assert "busy" in (found.check() or "")
            assert found.record() is None
        assert found.check() is None
        assert found.record() == listed_then


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([METADATA, answer("z")], "did not answer its output 'y'"),
        ([http(200, b'{"name": "m"}')], "says nothing of its inputs"),
        ([http(404, b'{"error": "no such model"}')], "no such model"),
    ],
)
def test_a_foreign_server_that_cannot_teach_is_not_listed(answers: list[bytes], words: str) -> None:
    with CannedServer(answers) as server, TeacherClient(server.url) as client:
        found = prober(client, server.url)
        assert words in (found.check() or "")
        assert found.record() is None


def test_zeros_have_the_shape_that_the_metadata_say() -> None:
    array = zeros(oip.TensorSpec("x", "FP16", (-1, 3, -1)))
    assert (array.shape, array.dtype) == ((1, 3, 16), np.dtype("float16"))
    assert zeros(oip.TensorSpec("x", "INT64", (8, 2))).shape == (8, 2)


def test_the_model_must_be_named_unless_there_is_one() -> None:
    answers = [http(200, b'{"name":"s","models":%s}' % models) for models in (b'["a"]', b'["a","b"]', b"[]")]
    with CannedServer(answers) as server, TeacherClient(server.url) as client:
        assert only_model(client, server.url) == "a"
        for _ in range(2):
            with pytest.raises(ConfigError, match="--model is missing"):
                only_model(client, server.url)
