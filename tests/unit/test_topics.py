"""What streams tell: every change once, everything to whoever is new, and nothing when nothing changed."""

import json
from typing import Any

from api_server import SUBMIT, P, Server

from edl_collective.coord.records import Event, Progress, encode
from jobserver.topics import (
    EVENTS_IN_MESSAGE,
    JobEvents,
    Topic,
    event_page,
    job_topic,
    jobs_topic,
    message,
    nodes_topic,
    service_topic,
    services_topic,
)


def told(data: bytes | None) -> dict[str, Any]:
    assert data is not None
    head, _, rest = data.decode().partition("data: ")
    assert rest.endswith("\n\n")
    assert "\n\n" not in rest[:-2]
    found: dict[str, Any] = json.loads(rest)
    return {**found, "head": head}


def say(server: Server, count: int, job: str = "j") -> None:
    for number in range(count):
        server.store.append(P.event_prefix(job), encode(Event(at=1.0, kind="job", text=f"event {number}")))


def test_only_what_changed_is_told_and_everything_on_request(server: Server) -> None:
    topic = jobs_topic()
    server.http.post("/api/v1/jobs", json=SUBMIT)
    first = told(topic.look(server.controller.view.load()))
    assert (first["topic"], first["full"], sorted(first["parts"]), first["gone"]) == ("jobs", False, ["j"], [])
    assert topic.look(server.controller.view.load()) is None
    server.http.post("/api/v1/jobs", json={**SUBMIT, "job": "k"})
    second = told(topic.look(server.controller.view.load()))
    assert "k" in second["parts"]
    everything = told(topic.everything())
    assert (everything["full"], sorted(everything["parts"])) == (True, ["j", "k"])
    server.store.delete(P.spec("j"), None)
    third = told(topic.look(server.controller.view.load()))
    assert third["gone"] == ["j"]
    assert sorted(told(topic.everything())["parts"]) == ["k"]


def test_of_a_job_only_the_fields_that_changed_are_told(server: Server) -> None:
    server.http.post("/api/v1/jobs", json={**SUBMIT, "env": {"PASSWORD": "secret"}})
    topic = job_topic("j", server.clock.wall_s)
    spec = told(topic.look(server.controller.view.load()))["parts"]["spec"]
    assert (spec["max_np"], "env" in spec, "secret" in topic.everything().decode()) == (4, False, False)
    server.put(P.progress("j"), Progress(generation=1, world_size=2, epoch=1, step=7))
    changed = told(topic.look(server.controller.view.load()))["parts"]
    assert set(changed) - {"goodput"} == {"progress", "world_size", "epoch", "step"}
    server.clock.advance(60)  # its goodput is another now, and that alone is no news
    assert topic.look(server.controller.view.load()) is None


def test_a_job_that_is_not_there_says_so_until_it_is(server: Server) -> None:
    topic = job_topic("j", server.clock.wall_s)
    assert told(topic.look(server.controller.view.load()))["parts"] == {"missing": "there is no job j"}
    server.http.post("/api/v1/jobs", json=SUBMIT)
    there = told(topic.look(server.controller.view.load()))
    assert there["gone"] == ["missing"]
    server.store.set(P.plan("j"), b"?", None)
    assert "left alone" in told(topic.look(server.controller.view.load()))["parts"]["missing"]


def test_nodes_are_not_shown_again_for_a_report_of_progress(server: Server) -> None:
    shown = 0
    topic = nodes_topic()
    show = topic.show

    def counted(snapshot: Any) -> Any:
        nonlocal shown
        shown += 1
        return show(snapshot)

    topic.show = counted
    server.node()
    server.http.post("/api/v1/jobs", json=SUBMIT)
    topic.look(server.controller.view.load())
    server.put(P.progress("j"), Progress(generation=1, world_size=2, epoch=1, step=7))
    assert topic.look(server.controller.view.load()) is None
    assert shown == 1
    server.controller.step()  # plans four workers on the node
    assert len(told(topic.look(server.controller.view.load()))["parts"]["a"]["workers"]) == 4
    server.http.post("/api/v1/nodes/a/drain")
    drained = told(topic.look(server.controller.view.load()))["parts"]["a"]
    assert drained["draining"]
    assert drained["drain"] is not None
    assert shown == 3


def test_services_and_one_that_is_not_there(server: Server) -> None:
    snapshot = server.controller.view.load(services=True)
    assert services_topic().look(snapshot) is None
    assert told(service_topic("s").look(snapshot))["parts"] == {"missing": "there is no service s"}


def test_events_are_told_once_in_messages_of_bounded_size(server: Server) -> None:
    server.http.post("/api/v1/jobs", json=SUBMIT)
    events = JobEvents("j")
    say(server, EVENTS_IN_MESSAGE + 5)
    first, second = map(told, events.look(server.controller.view.load()))
    assert (len(first["events"]), len(second["events"])) == (EVENTS_IN_MESSAGE, 5)
    assert (first["anew"], second["anew"]) == (True, False)
    newest = second["events"][-1]["number"]
    assert second["head"] == f"event: events\nid: {newest}\n"
    assert events.look(server.controller.view.load()) == []
    say(server, 1)
    (third,) = map(told, events.look(server.controller.view.load()))
    assert ([event["number"] for event in third["events"]], third["anew"]) == ([newest + 1], False)
    assert [event["number"] for event in told(events.after(newest)[0])["events"]] == [newest + 1]
    assert events.after(newest + 1) == []


def test_the_events_of_another_job_of_the_same_name_begin_anew(server: Server) -> None:
    server.http.post("/api/v1/jobs", json=SUBMIT)
    events = JobEvents("j")
    say(server, 3)
    events.look(server.controller.view.load())
    for name in server.store.children(P.events("j")):
        server.store.delete(f"{P.events('j')}/{name}", None)
    server.store.delete(P.spec("j"), None)
    assert events.look(server.controller.view.load()) == []
    server.clock.advance(1)
    server.http.post("/api/v1/jobs", json=SUBMIT)
    say(server, 1)
    (found,) = map(told, events.look(server.controller.view.load()))
    assert (len(found["events"]), found["anew"]) == (1, True)
    # A client that knows events of a number that this job has not reached knew another one.
    assert told(events.after(10_000)[0])["anew"]


def test_pages_of_events_forward_and_backward(server: Server) -> None:
    server.http.post("/api/v1/jobs", json=SUBMIT)
    say(server, 7)
    job = server.controller.view.load().jobs["j"]
    every = [row["number"] for row in event_page(job.events, None, None, 100)["events"]]

    def page(after: int | None, before: int | None, limit: int) -> tuple[list[int], int | None]:
        found = event_page(job.events, after, before, limit)
        return [every.index(row["number"]) for row in found["events"]], found["next"]

    assert page(None, None, 3) == ([0, 1, 2], every[2])
    assert page(every[2], None, 3) == ([3, 4, 5], every[5])
    assert page(every[5], None, 3) == ([6], None)
    assert page(None, every[6] + 1, 3) == ([4, 5, 6], every[4])
    assert page(None, every[1], 3) == ([0], None)
    assert page(every[0], every[4], 2) == ([1, 2], every[2])
    assert page(every[6], None, 3) == ([], None)


def test_pages_of_events_over_http(server: Server) -> None:
    server.http.post("/api/v1/jobs", json=SUBMIT)
    say(server, 4)
    first = server.http.get("/api/v1/jobs/j/events?limit=3").json()
    second = server.http.get(f"/api/v1/jobs/j/events?limit=3&after={first['next']}").json()
    texts = [event["text"] for event in first["events"] + second["events"]]
    assert (texts, second["next"]) == ([f"event {n}" for n in range(4)], None)
    for query, field in [("limit=0", "limit"), ("limit=1001", "limit"), ("after=x", "after"), ("before=", "before")]:
        answer = server.http.get(f"/api/v1/jobs/j/events?{query}")
        assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_text_of_the_cluster_cannot_forge_a_message() -> None:
    topic = Topic("t", lambda _: {"x": "a\n\nevent: change\ndata: {}\n\r\u2028"})
    data = topic.look(Server().controller.view.load())
    assert told(data)["parts"]["x"].startswith("a\n\nevent")
    assert message("beat", {}).decode() == "event: beat\ndata: {}\n\n"
