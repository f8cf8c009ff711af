"""A log endpoint that cannot be left: names, links and things that are no files, whatever a job puts there."""

import os
from pathlib import Path

import httpx
import pytest

from edl_collective.coord.auth import ClusterKey
from jobclient.node_api import make_app

pytestmark = pytest.mark.integration

KEY = ClusterKey(b"k" * 32)
SECRET = "nobody is to read this"


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    logs = tmp_path / "logs"
    (logs / "j").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    for name in ("secret", "w1.log"):
        (tmp_path / "secret" / name).write_text(SECRET)
    (logs / "w1.log").write_text(SECRET)
    (logs / "j" / "w1.log").write_text("hello")
    (logs / "j" / "link.log").symlink_to(tmp_path / "secret" / "secret")
    (logs / "j" / "loop.log").symlink_to(logs / "j" / "loop.log")
    (logs / "j" / "dir.log").mkdir()
    (logs / "linked").symlink_to(tmp_path / "secret")
    os.mkfifo(logs / "j" / "pipe.log")
    return logs


async def ask(log_dir: Path, path: str, token: str = KEY.api_token) -> httpx.Response:
    transport = httpx.ASGITransport(make_app(log_dir, KEY, "a"))
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        return await client.get(path, headers={"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize(
    "path",
    [
        *("j/link", "j/loop", "j/dir", "j/pipe", "linked/w1", "j/none", "none/w1"),
        *(
            "../w1",
            "%2e%2e/logs%2fw1",
            "./w1",
            "j/..%2fw1",
            "j%2f..%2f..%2fsecret/w1",
            "%2fetc/passwd",
            "j/%2fetc%2fpasswd",
        ),
        *("j/w1%00", "j%00/w1", "j/w1.log%00.x", "..%5csecret/w1", "j/" + "a" * 300, "j/%ff%fe", "/w1", "j/"),
    ],
)
async def test_no_request_leaves_the_directory(log_dir: Path, path: str) -> None:
    answer = await ask(log_dir, f"/logs/{path}")
    assert answer.status_code in (400, 404), answer.text
    assert SECRET not in answer.text


@pytest.mark.parametrize("query", ["offset=" + "9" * 30, "limit=" + "9" * 30, "offset=", "offset=%00", "limit=0x10"])
async def test_numbers_that_no_file_has_are_refused(log_dir: Path, query: str) -> None:
    assert (await ask(log_dir, f"/logs/j/w1?{query}")).status_code == 400
    assert (await ask(log_dir, "/logs/j/w1?offset=999999999999999999")).content == b""


async def test_a_token_of_one_log_opens_that_one(log_dir: Path) -> None:
    assert (await ask(log_dir, "/logs/j/w1", KEY.log_token("a", "j", "w1"))).text == "hello"
    assert (await ask(log_dir, "/logs/j/w1", KEY.read_only_token)).text == "hello"
    for other in (("b", "j", "w1"), ("a", "k", "w1"), ("a", "j", "w2"), ("aj", "", "w1")):
        assert (await ask(log_dir, "/logs/j/w1", KEY.log_token(*other))).status_code == 401
