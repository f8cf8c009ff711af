"""Which answers of teachers are learned from, and which are refused."""

import struct
from typing import Any

import pytest

from distill import oip
from distill.answers import Asking, WrongAnswer
from distill.io_messages import Go
from distill.source import Teacher

AGREED = Asking(Go(("x",), "m", "h1", {"y": (2,)}), ("y",), None)


def body(*values: float, shape: tuple[int, ...] = (1, 2), **parameters: object) -> tuple[int, memoryview]:
    """Bytes of the head, and an answer of one row."""
    head = oip.encode(oip.InferResponse("m", (oip.binary("y", "FP32", shape),), parameters=parameters))
    return len(head), memoryview(head + struct.pack(f"<{len(values)}f", *values))


def test_a_good_answer_is_taken_as_it_lies() -> None:
    [output] = AGREED.check(Teacher("t", "http://t:1"), *body(1.0, float("-inf"), model_hash="h1"), 1)
    assert (output.datatype, output.shape, bytes(output.data[:4])) == ("FP32", (1, 2), struct.pack("<f", 1.0))


@pytest.mark.parametrize("listed", [None, "h1", "h2"])
@pytest.mark.parametrize("answered", ["h2", None, 7])
def test_only_the_model_that_was_agreed_on_teaches(listed: str | None, answered: object) -> None:
    """Also when a teacher that came later is listed with another one, or says nothing."""
    parameters: dict[str, Any] = {} if answered is None else {"model_hash": answered}
    with pytest.raises(WrongAnswer, match="another model"):
        AGREED.check(Teacher("t", "http://t:1", None, listed), *body(1.0, 2.0, **parameters), 1)


def test_who_agreed_on_no_model_takes_what_is_listed() -> None:
    open_to_all = Asking(Go(("x",)), ("y",), None)
    assert open_to_all.check(Teacher("t", "http://t:1"), *body(1.0, 2.0), 1)
    with pytest.raises(WrongAnswer, match="another model"):
        open_to_all.check(Teacher("t", "http://t:1", None, "h1"), *body(1.0, 2.0, model_hash="h2"), 1)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (body(1.0, float("nan"), model_hash="h1"), "NaN in 'y'"),
        (body(1.0, 2.0, 3.0, shape=(1, 3), model_hash="h1"), r"rows of 'y' of shape \[3\]"),
        (body(1.0, 2.0, 3.0, 4.0, shape=(2, 2), model_hash="h1"), "for 1 rows"),
        (body(1.0, model_hash="h1"), "no answer of the protocol"),
        ((10**6, memoryview(b"{}")), "says that the head"),
        ((2, memoryview(b"{}")), "no answer of the protocol"),
        ((None, memoryview(b"[" * 10**5)), "no answer of the protocol"),
    ],
)
def test_what_is_no_answer_is_refused(answer: tuple[int | None, memoryview], says: str) -> None:
    with pytest.raises(WrongAnswer, match=says):
        AGREED.check(Teacher("t", "http://t:1"), *answer, 1)
