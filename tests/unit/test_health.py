"""The health check: a real probe of the CPU, probes that fail, hang or cannot tell, and what the node then offers."""

import asyncio
import contextlib
import sys
import time
from pathlib import Path

import psutil
import pytest
from agent_cluster import until

from edl_collective.coord.records import UNHEALTHY_LABEL, NodeRecord
from jobclient import health, health_probe
from jobclient.config import Config, parse
from jobclient.health import Device, healthy, problems_of, without
from jobclient.health_probe import NOT_CHECKED
from jobclient.options import ConfigError
from jobclient.processes import Command


def config(*argv: str) -> Config:
    return parse(["--interface", "lo", *argv], {"PYTHONPATH": str(Path(__file__).resolve().parents[2])})


def node(*gpus: int) -> NodeRecord:
    return NodeRecord(
        node="a", incarnation="i", address="127.0.0.1", port=1, slots=len(gpus) or 4, gpus=gpus, labels={"rack": "7"}
    )


async def test_a_cpu_that_works_is_offered() -> None:
    assert await healthy(node(), config("--gpus", "none", "--health-check", "on")) == node()


async def test_off_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "problems_of", None)  # would fail if it were called
    assert await healthy(node(0), config("--gpus", "0", "--health-check", "off")) == node(0)


async def test_each_probe_speaks_for_its_own_device(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    programs: dict[Device, str] = {
        0: "pass",
        1: "print('first'); print('3 elements are wrong'); raise SystemExit(1)",
        2: f"print('no torch'); raise SystemExit({NOT_CHECKED})",
        3: "import os; os.abort()",
    }

    def command(device: Device) -> Command:
        return Command([sys.executable, "-c", programs[device]], {}, tmp_path, tmp_path / f"{device}.log")

    found = await problems_of(list(programs), command, config("--health-timeout", "60"))
    assert found == {1: "3 elements are wrong", 3: "killed by SIGABRT"}
    assert "GPU 2 is offered without a health check: no torch" in caplog.text


def sleepers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] if child.name() == "sleep" else []
    return found


async def test_a_probe_that_hangs_is_killed_in_time_or_when_the_client_ends(tmp_path: Path) -> None:
    def command(device: Device) -> Command:
        return Command(["sleep", "600"], {"PATH": "/usr/bin:/bin"}, tmp_path, tmp_path / f"{device}.log")

    begin = time.monotonic()
    assert await problems_of([0], command, config("--health-timeout", "0.2")) == {
        0: "no answer within 0.2 s (--health-timeout)"
    }
    trying = asyncio.ensure_future(problems_of([0, 1], command, config()))
    await until(lambda: len(sleepers()) == 2, 60.0)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert time.monotonic() - begin < 60
    assert sleepers() == []


def test_a_slot_whose_device_fails_is_not_offered_and_the_label_says_why() -> None:
    left = without(node(0, 1, 1, 2), {1: "a matrix product is wrong"})
    assert (left.gpus, left.slots) == ((0, 2), 2)
    assert left.labels == {"rack": "7", UNHEALTHY_LABEL: "GPU 1: a matrix product is wrong"}
    assert without(node(0, 1), {}) == node(0, 1)


@pytest.mark.parametrize(("gpus", "device"), [((3, 3), 3), ((), None)])
def test_a_node_without_a_working_slot_does_not_register(gpus: tuple[int, ...], device: Device) -> None:
    with pytest.raises(ConfigError, match=r"no slot passed the health check .*broken.*--health-check off"):
        without(node(*gpus), {device: "broken"})


def test_a_device_that_computes_or_communicates_wrongly_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    right = torch.Tensor.__matmul__

    def wrong(ours: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        product = right(ours, other)
        if product.dtype is torch.float32:
            product[5, 7] += 1
        return product

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "__matmul__", wrong)
        assert health_probe.main("cpu") == 1
    assert "1 of 262144 elements of a matrix product are wrong" in capsys.readouterr().out
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.add_(1))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert health_probe.main("cpu") == 1
    assert "an allreduce with itself (gloo) changed the values" in capsys.readouterr().out


def test_what_cannot_tell_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    assert health_probe.main("cuda") == NOT_CHECKED
    monkeypatch.setitem(sys.modules, "torch", None)
    assert health_probe.main("cpu") == NOT_CHECKED
    assert "torch cannot be imported" in capsys.readouterr().out
