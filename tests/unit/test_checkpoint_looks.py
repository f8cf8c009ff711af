"""Looks at checkpoints on behalf of a JobServer: what hangs, crashes or is not there holds up nobody."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from api_server import SUBMIT, Server
from fastapi import FastAPI

from checkpoints import TrainStatus, pin, save_checkpoint
from edl_collective.coord.clock import SystemClock
from jobserver.api_checkpoints import add_checkpoints
from jobserver.checkpoint_look import MOST, look
from jobserver.checkpoint_looks import CheckpointLooks

WAIT_S = 60.0


def looks(code: str, limit_s: float = WAIT_S) -> CheckpointLooks:
    return CheckpointLooks(SystemClock(), (sys.executable, "-I", "-S", "-c", code), limit_s)


def save(folder: Path, epoch: int) -> None:
    save_checkpoint(str(folder), TrainStatus(epoch_no=epoch), state={"model": {"weight": torch.ones(8)}})


def test_each_checkpoint_with_its_condition_and_why(tmp_path: Path) -> None:
    for epoch in range(3):
        save(tmp_path, epoch)
    newest, middle, oldest = sorted(tmp_path.glob("ckpt-*"), reverse=True)
    next(newest.glob("model-*")).unlink()
    (oldest / "manifest.json").unlink()
    pin(str(tmp_path), middle.name)
    found = look(str(tmp_path))
    assert found["total"] == 3
    shown = [(row["name"], row["condition"], row["epoch"], row["pinned"]) for row in found["checkpoints"]]
    assert shown == [
        (newest.name, "damaged", 2, False),
        (middle.name, "valid", 1, True),
        (oldest.name, "unfinished", None, False),
    ]
    assert "is missing" in found["checkpoints"][0]["problem"]
    assert found["checkpoints"][1]["size_bytes"] > 0
    assert json.loads(json.dumps(found)) == found


def test_a_look_ends_with_its_time_and_with_enough(tmp_path: Path) -> None:
    for number in range(MOST + 2):
        (tmp_path / f"ckpt-{number:08d}-e1-s{number}-0123456789ab").mkdir()
    assert (len(look(str(tmp_path))["checkpoints"]), look(str(tmp_path))["total"]) == (MOST, MOST + 2)
    assert len(look(str(tmp_path), budget_s=-1.0)["checkpoints"]) == 1


@pytest.mark.parametrize("url", ["hdfs://127.0.0.1:1/x?timeout=1&driver=nothing", "no-such-scheme://x", ""])
def test_what_cannot_be_looked_at_is_a_sentence(url: str) -> None:
    found = look(url)
    assert found.keys() == {"problem"}
    assert found["problem"]
    assert "\n" not in found["problem"]


def test_a_file_system_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    slow = looks(f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)", limit_s=1.5)
    found = slow.at("nfs").result(WAIT_S)
    assert found["problem"] == "the file system did not answer within 1.5 s"
    assert found["took_s"] >= 1.5
    if pid.exists() and pid.read_text():  # else the machine was too slow for it to begin
        assert not Path(f"/proc/{pid.read_text()}").exists()


def test_a_crash_is_a_sentence() -> None:
    assert looks("import os; os.abort()").at("x").result(WAIT_S)["problem"] == "the look at it ended with status -6"


def test_who_asks_meanwhile_or_soon_after_gets_the_same_answer(tmp_path: Path) -> None:
    count = tmp_path / "count"
    counting = looks(f"import sys; open({str(count)!r}, 'a').write('x'); print('{{}}'); sys.stdin.read()")
    first = counting.at("a")
    assert counting.at("a") is first
    first.result(WAIT_S)
    assert counting.at("a") is first
    assert counting.at("b") is not first
    counting.at("b").result(WAIT_S)
    assert count.read_text() == "xx"


def test_an_answer_is_new_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobserver.checkpoint_looks.KEEP_S", 0.0)
    quick = looks("print('{}')")
    first = quick.at("a")
    first.result(WAIT_S)
    assert quick.at("a") is not first
    quick.at("a").result(WAIT_S)


def test_the_url_is_told_on_no_command_line() -> None:
    said = looks("import sys, json; print(json.dumps({'url': sys.stdin.read(), 'argv': sys.argv}))")
    found = said.at("s3://key:secret@bucket").result(WAIT_S)
    assert (found["url"], found["argv"]) == ("s3://key:secret@bucket", ["-c"])


def test_a_server_that_ends_waits_for_no_look(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid()) + '.'); time.sleep(600)"
    slow = looks(code)
    answer = slow.at("nfs")
    until_s = time.monotonic() + WAIT_S
    while not (pid.exists() and pid.read_text().endswith(".")):
        assert time.monotonic() < until_s
        time.sleep(0.01)
    slow.close()
    assert "ended with status -9" in answer.result(WAIT_S)["problem"]
    assert slow.at("other").result(WAIT_S) == {"problem": "this JobServer ends"}
    assert not os.path.exists(f"/proc/{pid.read_text()[:-1]}")


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    found.node()
    found.http.app.state.checkpoint_looks._limit_s = WAIT_S
    yield found
    found.http.app.state.checkpoint_looks.close()
    found.controller.stop()


def test_the_interface_tells_what_it_sees(server: Server, tmp_path: Path) -> None:
    save(tmp_path, 4)
    server.http.post("/api/v1/jobs", json={**SUBMIT, "checkpoint_url": f"file://{tmp_path}"})
    found = server.http.get("/api/v1/jobs/j/checkpoints").json()
    assert (found["problem"], found["total"], found["url"]) == (None, 1, f"file://{tmp_path}")
    assert [(row["condition"], row["epoch"]) for row in found["checkpoints"]] == [("valid", 4)]
    assert found["at"] == server.clock.wall_s()
    assert server.http.get("/api/v1/jobs/k/checkpoints").status_code == 404


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (None, "submitted without --checkpoint"),
        ("runs/a", "begins in the job's folder on each node"),
        (
            "hdfs://127.0.0.1:1/x?driver=nothing",
            "cannot look at it (its workers may): there is no driver",
        ),
    ],
)
def test_what_the_interface_cannot_see_is_not_taken_for_nothing(server: Server, url: str | None, problem: str) -> None:
    server.http.post("/api/v1/jobs", json={**SUBMIT, "checkpoint_url": url})
    found = server.http.get("/api/v1/jobs/j/checkpoints").json()
    assert (found["checkpoints"], problem in found["problem"]) == (None, True), found


def test_a_slow_look_keeps_nobody_else_waiting(server: Server) -> None:
    """The application's own thread answers others while a look goes on."""
    app = FastAPI()
    slow = looks("import time; time.sleep(600)", limit_s=0.5)
    server.http.post("/api/v1/jobs", json={**SUBMIT, "checkpoint_url": "/nfs"})
    add_checkpoints(app, server.service, slow)
    server.http.app = app
    assert "did not answer within 0.5 s" in server.http.get("/api/v1/jobs/j/checkpoints").json()["problem"]
