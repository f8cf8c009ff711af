"""The host memory of saves: what a forked child has of it, and how it is pinned for CUDA (by a CUDA that is played)."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_memory import Counter

from checkpoints.host_memory import HostBuffer
from checkpoints.shard_writer import Staged, Streamed
from checkpoints.staging import Staging, states_of, streamed

SIZE_BYTES = 1 << 20


def flags(buffer: HostBuffer) -> list[str]:
    """What the kernel says of the memory of a buffer."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer.view))
    found = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        first = line.split()[0]
        if "-" in first and ":" not in first:
            begin, end = (int(part, 16) for part in first.split("-"))
            found = begin <= address < end
        elif found and first == "VmFlags:":
            return line.split()[1:]
    raise AssertionError("the buffer is not mapped")


def test_a_forked_child_shares_nothing_that_is_written_to_a_disk() -> None:
    states = states_of({"counter": Counter(1)})
    staging = Staging()
    (staged,) = staging.copy(states).values()
    (live,) = streamed(states).values()
    assert isinstance(staged, Staged)
    assert isinstance(live, Streamed)
    assert staging._buffer is not None
    for buffer in (staging._buffer, live._buffer):
        assert "dc" in flags(buffer), "do not copy on fork"
    assert "dc" not in flags(HostBuffer(SIZE_BYTES)), "what was loaded is the user's, also in a child"


class Cudart:
    """Registers memory as CUDA does; `code` is what it answers."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.calls: list[tuple[Any, ...]] = []

    def cudaHostRegister(self, address: int, size_bytes: int, portable: int) -> int:
        self.calls.append(("register", address, size_bytes, portable))
        return self.code

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append(("unregister", address))
        return 0


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cudart]:
    played = Cudart()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: played)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    yield played
    gc.collect()  # buffers that are left let go of their memory while CUDA is played


def test_memory_is_pinned_as_it_is_and_let_go_once(cudart: Cudart) -> None:
    size_bytes = SIZE_BYTES + 4096  # torch's own pinned memory would take twice as much
    buffer = HostBuffer(size_bytes, pinned_for="cuda:0", forked=False)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer.view))
    assert cudart.calls == [("register", address, size_bytes, 1)]
    del buffer
    gc.collect()
    assert cudart.calls[1:] == [("unregister", address)]


def test_memory_that_cannot_be_pinned_is_used_as_it_is(cudart: Cudart, caplog: pytest.LogCaptureFixture) -> None:
    cudart.code = 2
    with caplog.at_level(logging.WARNING):
        buffer = HostBuffer(SIZE_BYTES, pinned_for="cpu")
    assert "CUDA error 2" in caplog.text
    buffer.touch()
    del buffer
    gc.collect()
    assert [call[0] for call in cudart.calls] == ["register"]
