"""A teacher that can be made to misbehave: `python fault_teacher.py PORT [--delay-ms N] [--fault NAME] [--after N]`.

It speaks the protocol over plain sockets, starts at once (no numpy, no torch) and answers each row of its first input
with FP32 [4]: the number in the row's first eight bytes, that number plus a half, the row's last byte, and zero. So a
prediction shows which sample it belongs to, and that all of the sample came. After `--after` answers it has its fault:
nan, shape, hash, refuse, busy, close, hang, garbage. With `--make` it speaks as servers of another make do.
"""

import argparse
import json
import re
import socket
import struct
import threading
import time
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD = re.compile(rb"\r\ninference-header-content-length: *(\d+)", re.IGNORECASE)
CLASSES = 4


_TENSORS = {
    "inputs": [{"name": "x", "datatype": "UINT8", "shape": [-1, 64]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, CLASSES]}],
}
#: what servers of another make say of themselves and of a model, by make and path
_FOREIGN: dict[tuple[str, str], Any] = {
    ("triton", "/v2"): {"name": "triton", "version": "2.50.0", "extensions": ["classification", "binary_tensor_data"]},
    ("triton", "/v2/models/m"): {"name": "m", "versions": ["1"], "platform": "onnxruntime_onnx", **_TENSORS},
    ("kserve", "/v2"): {"name": "kserve", "version": "0.13.0", "extensions": None},
    ("kserve", "/v2/models/m"): {"name": "m", "versions": None, "platform": "", "parameters": None, **_TENSORS},
}


class Teacher:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._answered = 0
        self._busy = threading.Lock()

    def serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        file = connection.makefile("rb")
        with connection, file:
            while True:
                lines = []
                while line := file.readline():
                    if line == b"\r\n":
                        break
                    lines.append(line)
                if not lines:
                    return
                head = b"".join(lines)
                found = _LENGTH.search(head)
                body = file.read(int(found[1])) if found else b""
                try:
                    self._answer(connection, head, body)
                except OSError:
                    return

    def _answer(self, connection: socket.socket, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if not path.endswith(b"/infer"):
            page = self._page(path)
            _send(
                connection,
                404 if page is None else 200,
                json.dumps(page or {"error": "no model of that name"}).encode(),
            )
            return
        match = _HEAD.search(head)
        assert match is not None
        size = int(match[1])
        tensor = json.loads(body[:size])["inputs"][0]
        with self._busy:
            time.sleep(self._options.delay_ms / 1e3)
            self._answered += 1
            fault = self._options.fault if self._answered > self._options.after else ""
        self._infer(connection, tensor, body[size:], fault)

    def _infer(self, connection: socket.socket, tensor: dict[str, Any], data: bytes, fault: str) -> None:
        rows = tensor["shape"][0]
        row_bytes = len(data) // rows if len(tensor["shape"]) == 1 else tensor["parameters"]["binary_data_size"] // rows
        values: list[float] = []
        for row in range(rows):
            (number,) = struct.unpack_from("<q", data, row * row_bytes)
            values += [float(number), number + 0.5, float(data[(row + 1) * row_bytes - 1]), 0.0]
        if fault == "hang":
            time.sleep(3600)
        if fault == "close":
            connection.shutdown(socket.SHUT_RDWR)
        if fault in ("refuse", "busy"):
            _send(connection, 400 if fault == "refuse" else 503, b'{"error": "it does not want to"}')
            return
        if fault == "garbage":
            connection.sendall(b"what?\r\n\r\n")
            return
        if fault == "nan":
            values[0] = float("nan")
        shape = [rows, CLASSES] if fault != "shape" else [rows, CLASSES * 2]
        values = values if fault != "shape" else values * 2
        tensor_bytes = struct.pack(f"<{len(values)}f", *values)
        output = {"name": "y", "datatype": "FP32", "shape": shape}
        answer: dict[str, Any] = {
            "model_name": "m",
            "outputs": [{**output, "parameters": {"binary_data_size": len(tensor_bytes)}}],
            "parameters": {"model_hash": "other" if fault == "hash" else self._options.hash},
        }
        if self._options.make == "triton":
            answer |= {"model_version": "1", "parameters": {"sequence_id": 0, "sequence_start": False}}
        if self._options.make == "kserve":
            answer |= {"model_version": None, "id": "8d2c", "parameters": None}
            answer["outputs"] = [{**output, "parameters": None, "data": values}]
            tensor_bytes = b""
        head = json.dumps(answer).encode()
        binary = f"Inference-Header-Content-Length: {len(head)}\r\n" if tensor_bytes else ""
        _send(connection, 200, head + tensor_bytes, binary)

    def _page(self, path: bytes) -> Any:
        foreign = _FOREIGN.get((self._options.make, path.decode()))
        if foreign is not None:
            return foreign
        if path == b"/v2":
            return {"name": "fault teacher", "version": "1", "extensions": ["binary_tensor_data"], "models": ["m"]}
        if path == b"/v2/models/m":
            return {
                "name": "m",
                "inputs": [{"name": "x", "datatype": "UINT8", "shape": [-1, -1]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, CLASSES]}],
                "parameters": {"model_hash": self._options.hash},
            }
        return {"ready": True} if path.startswith(b"/v2/health/") else None


def _send(connection: socket.socket, status: int, body: bytes, fields: str = "") -> None:
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/octet-stream\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--fault", default="")
    parser.add_argument("--after", type=int, default=0)
    parser.add_argument("--hash", default="h1")
    parser.add_argument("--make", default="", help="answer as triton or kserve does")
    options = parser.parse_args()
    teacher = Teacher(options)
    listener = socket.create_server(("127.0.0.1", options.port), backlog=64)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=teacher.serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
