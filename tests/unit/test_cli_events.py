"""edl events: pages, and following a job to its end, also when the server is lost on the way; edl ui."""

import json
import stat
import threading
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli import Cluster, P

from edl_collective.coord.records import UNHEALTHY_LABEL, Event, NodeRecord, encode
from jobserver.cli import following as following_module
from jobserver.cli.client import Api, CommandFailed, StreamLost
from jobserver.cli.events import _follow, _follow_cluster

WAIT_S = 40.0
Told = tuple[str, dict[str, Any]]


@pytest.fixture
def following(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as found:
        record = NodeRecord(node="a", incarnation="i", address="127.0.0.1", port=1, slots=4)
        found.store.set(P.node("a"), encode(record), None)
        assert found.edl("submit", "--name", "j", "--", "python", "train.py").exit_code == 0
        yield found


def test_pages_forward_backward_and_all(following: Cluster) -> None:
    for number in range(6):
        following.store.append(P.event_prefix("j"), encode(Event(at=1.0, kind="job", text=f"event {number}")))

    def texts(*options: str) -> list[str]:
        return [event["text"][-1] for event in following.json("events", "j", *options)["events"]]

    assert texts() == list("012345")
    assert texts("--limit", "2") == list("45")
    numbers = [event["number"] for event in following.json("events", "j")["events"]]
    assert texts("--after", str(numbers[1]), "--limit", "3") == list("234")
    assert texts("--before", str(numbers[4]), "--limit", "2") == list("23")
    assert texts("--before", str(numbers[2])) == list("01")
    assert following.edl("events", "j", "-f", "--before", "3").exit_code == 2
    assert following.edl("events", "j", "--limit", "0").exit_code == 2


def test_following_prints_what_happens_until_the_job_has_ended(following: Cluster) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(following.edl("events", "-f", "j", "--json")))
    thread.start()
    until_s = time.monotonic() + WAIT_S
    while "edl-feed" not in {other.name for other in threading.enumerate()}:
        assert time.monotonic() < until_s
        time.sleep(0.01)
    following.controller.step()
    assert following.store.children(P.events("j"))
    Api(following.url, following.key_file).post("/jobs/j/stop")
    following.controller.step()
    following.controller.step()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert results[0].exit_code == 0, results[0].output
    told = [json.loads(line) for line in results[0].stdout.splitlines()]
    assert told == following.json("events", "j")["events"]
    assert (told[0]["kind"], told[-1]["fields"]["phase"]) == ("plan", "stopped")
    again = following.edl("events", "-f", "j")
    assert (again.exit_code, len(again.output.splitlines())) == (0, len(told))
    assert len(following.edl("events", "-f", "j", "--limit", "1").output.splitlines()) == 1


def test_a_job_that_is_not_there_is_no_job_to_follow(following: Cluster) -> None:
    result = following.edl("events", "-f", "nobody")
    assert (result.exit_code, "there is no job nobody" in result.output) == (1, True)


def test_a_browser_is_led_to_the_page_without_telling_the_token_to_other_users(
    following: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_(address: str) -> bool:
        opened.append(address)
        return True

    monkeypatch.setattr(webbrowser, "open", open_)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".edl").mkdir()
    (tmp_path / ".edl" / "page.html").write_text("everybody may read this")
    result = following.edl("ui", "--open")
    assert result.exit_code == 0, result.output
    address = result.stdout.strip()
    door = tmp_path / ".edl" / "page.html"
    assert opened == [door.as_uri()]  # it is the browser's command line
    assert stat.S_IMODE(door.stat().st_mode) == 0o600
    assert f"url={address}" in door.read_text()
    assert "#token=" in address


def test_without_a_job_it_is_about_nodes(following: Cluster) -> None:
    assert following.json("events") == {"events": []}
    ill = NodeRecord(node="b", incarnation="i", address="h", port=1, slots=3, labels={UNHEALTHY_LABEL: "GPU 1: slow"})
    following.store.set(P.node("b"), encode(ill), None)
    following.controller.step()
    assert following.edl("events").output.endswith(
        "node        node b offers 3 slots, fewer than it has: GPU 1: slow\n"
    )


def numbered(*numbers: int) -> Told:
    rows = {str(number): {"number": number, "text": ""} for number in numbers}
    return "change", {"topic": "events", "full": False, "parts": rows, "gone": []}


def test_nodes_are_followed_over_the_loss_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following_module, "FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(following_module, "PATIENCE_S", 0.1)
    streams = [[("beat", {}), numbered(9, 10)], [numbered(9, 10, 11), numbered(12)]]

    class Losing:
        def stream(self, *, topics: str) -> Iterator[Told]:
            assert topics == "events"
            yield from streams.pop(0) if streams else ()
            raise StreamLost("gone")

    told = _follow_cluster(Losing(), 9)  # type: ignore[arg-type]
    assert [next(told)["number"] for _ in range(3)] == [10, 11, 12]
    with pytest.raises(StreamLost):
        next(told)


def test_the_address_of_the_page_holds_the_token_where_it_is_not_sent(following: Cluster) -> None:
    result = following.edl("ui")
    assert result.exit_code == 0
    address, _, token = result.output.strip().partition("/#token=")
    assert (address, len(token)) == (following.url, 32)
    assert following.json("ui")["url"] == result.output.strip()


class Lossy:
    """Streams that break after some messages; `asked` has the `after` of each."""

    def __init__(self, *streams: list[Told]) -> None:
        self._streams = list(streams)
        self.asked: list[int] = []

    def stream(self, *, job: str, after: int) -> Iterator[Told]:
        self.asked.append(after)
        if self._streams:
            yield from self._streams.pop(0)
        raise StreamLost("gone")


def events(*numbers: int, kind: str = "worker", **fields: str) -> Told:
    rows = [{"number": number, "kind": kind, "text": "", "at": 1.0, "fields": fields} for number in numbers]
    return "events", {"job": "j", "anew": False, "events": rows}


def phase(name: str) -> Told:
    return "change", {"topic": "job/j", "full": False, "parts": {"phase": name}, "gone": []}


def test_a_lost_stream_is_taken_up_where_it_was_and_nothing_is_told_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following_module, "FIRST_RETRY_S", 0.001)
    end = events(6, kind="job", phase="failed")
    api = Lossy([phase("running"), events(1, 2)], [], [events(2, 3), phase("failed"), events(4), end])
    assert [event["number"] for event in _follow(api, "j", 0)] == [1, 2, 3, 4, 6]  # type: ignore[arg-type]
    assert api.asked == [0, 2, 2]


def test_an_end_that_was_told_before_ends_it_with_the_next_beat() -> None:
    api = Lossy([("beat", {"at": 1.0}), phase("stopped"), ("beat", {"at": 2.0})])
    assert list(_follow(api, "j", 9)) == []  # type: ignore[arg-type]


def test_a_server_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following_module, "PATIENCE_S", 0.0)
    monkeypatch.setattr(following_module, "FIRST_RETRY_S", 0.001)
    with pytest.raises(CommandFailed, match="gone"):
        list(_follow(Lossy(), "j", 0))  # type: ignore[arg-type]
