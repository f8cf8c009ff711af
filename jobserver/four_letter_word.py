"""ZooKeeper's four-letter words: a question on a bare TCP connection, answered without a session."""

import contextlib
import socket

HOST = "127.0.0.1"


def four_letter_word(word: str, port: int, host: str = HOST, timeout_s: float = 1.0) -> str:
    """Ask the server at `host`:`port` one of ZooKeeper's four-letter words; "" when nobody answers."""
    answer = bytearray()
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=timeout_s) as connection:
        connection.sendall(word.encode("ascii"))
        while chunk := connection.recv(65536):
            answer += chunk
    return answer.decode("utf-8", "replace")
