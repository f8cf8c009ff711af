"""What goes over the wire to a teacher of the model "identity" and back, byte by byte."""

import socket

import numpy as np
from teacher_models import ids_of, with_ids

from distill import oip

INFER = "/v2/models/identity/infer"


def images(*ids: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return with_ids(np.zeros((len(ids), 3, 8, 8), np.uint8), ids)


def request(*ids: int, expect: bool = False, close: bool = False) -> bytes:
    """A whole request, as it goes over the wire."""
    pixels = images(*ids)
    head = oip.encode(
        oip.InferRequest((oip.binary("image", "UINT8", pixels.shape),), (), parameters={"binary_data_output": True})
    )
    lines = [f"POST {INFER} HTTP/1.1", "Host: t", f"Content-Length: {len(head) + pixels.size}"]
    lines += [f"{oip.HEADER_LENGTH}: {len(head)}", *(["Expect: 100-continue"] if expect else [])]
    lines += ["Connection: close"] if close else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + head + pixels.tobytes()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer, leaving what comes after it in the socket."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        more = connection.recv(1)
        if not more:
            raise EOFError(head)
        head += more
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
    body = b""
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(int(headers["content-length"]) - len(body))
    return int(lines[0].split()[1]), headers, body


def answered_ids(answer: tuple[int, dict[str, str], bytes]) -> list[int]:
    status, headers, body = answer
    assert status == 200, body
    length = int(headers[oip.HEADER_LENGTH.lower()])
    [output] = oip.decode_response(body[:length], len(body) - length).outputs
    return ids_of(np.frombuffer(body[length:], np.float16).reshape(output.shape))
