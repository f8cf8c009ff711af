"""Draining a node by command: the HTTP interface, the command line, and what a JobClient makes of the order."""

import logging

import pytest
from api_server import SUBMIT, P, Server, refused

from edl_collective.coord.memory_store import MemoryStore
from edl_collective.coord.records import DrainRecord, decode, encode
from jobclient.drain import Orders


def nodes_of_job(server: Server) -> list[str]:
    return [row[1] for row in server.http.get("/api/v1/jobs/j").json()["plan"]["workers"]]


def test_a_drained_node_is_left_and_stays_registered(server: Server) -> None:
    server.node("a", slots=2)
    server.node("b", slots=2)
    server.http.post("/api/v1/jobs", json={**SUBMIT, "max_np": 2})
    server.controller.step()
    assert nodes_of_job(server) == ["a", "a"]
    answer = server.http.post("/api/v1/nodes/a/drain", json={"deadline_s": 60})
    assert answer.json() == {"node": "a", "draining": True, "deadline_s": 60.0, "there": True}
    server.controller.step()
    assert nodes_of_job(server) == ["b", "b"]
    row = server.http.get("/api/v1/nodes").json()["nodes"][0]
    assert (row["node"], row["draining"], row["drain"]) == ("a", True, {"deadline_s": 60.0, "asked_at": 1000.0})
    assert server.http.post("/api/v1/nodes/a/undrain").json() == {"node": "a", "draining": False}
    row = server.http.get("/api/v1/nodes").json()["nodes"][0]
    assert (row["draining"], row["drain"]) == (False, None)


def test_a_drain_outlives_the_node(server: Server) -> None:
    server.node("a")
    assert server.http.post("/api/v1/nodes/a/drain").status_code == 200
    server.store.delete(P.node("a"))
    assert server.http.get("/api/v1/nodes").json() == {"nodes": []}
    server.node("a")
    assert server.http.get("/api/v1/nodes").json()["nodes"][0]["draining"]
    server.store.delete(P.node("a"))
    assert server.http.post("/api/v1/nodes/a/undrain").status_code == 200


def test_a_node_that_is_away_for_a_moment_can_be_drained(server: Server) -> None:
    server.node("a")
    server.http.post("/api/v1/jobs", json=SUBMIT)
    server.controller.step()
    server.store.delete(P.node("a"))
    answer = server.http.post("/api/v1/nodes/a/drain")
    assert answer.json() == {"node": "a", "draining": True, "deadline_s": None, "there": False}
    server.node("a")
    assert server.http.get("/api/v1/nodes").json()["nodes"][0]["draining"]


def test_a_node_that_nobody_knows_is_drained_only_on_purpose(server: Server) -> None:
    server.node("a")
    refused(server.http.post("/api/v1/nodes/b/drain"), 404, "edl drain b --absent", "node")
    refused(server.http.post("/api/v1/nodes/b/drain", json={"absent": 1}), 422, "absent is 1", "absent")
    assert server.store.get(P.drain("b")) is None
    assert server.http.post("/api/v1/nodes/b/drain", json={"absent": True}).json()["there"] is False
    assert server.http.post("/api/v1/nodes/b/drain", json={"deadline_s": 5}).json()["deadline_s"] == 5.0
    server.node("b")
    assert server.http.get("/api/v1/nodes").json()["nodes"][1]["draining"]


def test_a_second_order_changes_the_deadline(server: Server) -> None:
    server.node("a")
    for deadline_s in (60.0, None, 5.0):
        server.http.post("/api/v1/nodes/a/drain", json={"deadline_s": deadline_s})
        found = server.store.get(P.drain("a"))
        assert found is not None
        assert decode(found.data, DrainRecord).deadline_s == deadline_s


def test_orders_that_cannot_be_are_refused(server: Server) -> None:
    refused(server.http.post("/api/v1/nodes/a/drain"), 404, "there is no node a", "node")
    server.node("a")
    refused(server.http.post("/api/v1/nodes/a/undrain"), 404, "nobody drains node a", "node")
    for body, text in (({"deadline_s": -1}, "at least 0"), ({"deadline_s": "soon"}, "expected `float | null`")):
        refused(server.http.post("/api/v1/nodes/a/drain", json=body), 422, text, "deadline_s")
    refused(server.http.post("/api/v1/nodes/a/drain", json={"when": 1}), 422, "no field 'when'", "when")
    assert server.store.get(P.drain("a")) is None


def test_an_order_that_does_not_parse_is_a_problem_that_is_shown(server: Server) -> None:
    server.node("a")
    server.store.create(P.drain("a"), b"{}")
    assert P.drain("a") in server.http.get("/api/v1/health").json()["problems"][0]
    assert not server.http.get("/api/v1/nodes").json()["nodes"][0]["draining"]


def test_spares_of_a_job_are_counted_and_marked(server: Server) -> None:
    server.node("a", slots=4)
    server.http.post("/api/v1/jobs", json={**SUBMIT, "max_np": 2, "spares": 1})
    server.controller.step()
    job = server.http.get("/api/v1/jobs/j").json()
    assert (job["workers"], job["spares"], len(job["plan"]["spares"])) == (2, 1, 1)
    rows = server.http.get("/api/v1/nodes").json()["nodes"][0]["workers"]
    assert [(row["worker"], row["spare"]) for row in rows] == [("w1", False), ("w2", False), ("w3", True)]


@pytest.mark.parametrize(
    ("changes", "text", "field"),
    [
        ({"spares": -1}, "spares is -1: it must be at least 0", "spares"),
        ({"spares": 1, "kind": "external"}, "knows no spares", "spares"),
        ({"warm_timeout_s": 0}, "warm_timeout_s is 0", "warm_timeout_s"),
        ({"return_timeout_s": -1}, "return_timeout_s is -1", "return_timeout_s"),
    ],
)
def test_knobs_that_cannot_work_are_refused(server: Server, changes: dict[str, object], text: str, field: str) -> None:
    refused(server.http.post("/api/v1/jobs", json={**SUBMIT, **changes}), 422, text, field)


# ---- the JobClient's side ------------------------------------------------------------------------------------------


def ordered(orders: Orders) -> tuple[bool, float | None]:
    return orders.drained, orders.leave_by_s


def test_a_deadline_counts_from_when_it_was_heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = MemoryStore()
    woken: list[bool] = []
    orders = Orders(store, P, "a", lambda: woken.append(True))
    orders.refresh(5.0)
    assert ordered(orders) == (False, None)
    store.set(P.drain("a"), encode(DrainRecord(node="a", deadline_s=60.0, asked_at=1e9)), None)
    assert woken
    orders.refresh(100.0)
    assert ordered(orders) == (True, 160.0)
    orders.refresh(120.0)
    assert ordered(orders) == (True, 160.0)
    store.delete(P.drain("a"))
    orders.refresh(130.0)
    assert ordered(orders) == (False, None)
    assert "are to leave within 60 s" in caplog.text
    assert "was cancelled" in caplog.text
    orders.close()


def test_an_order_without_a_deadline_and_one_that_does_not_parse(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    orders = Orders(store, P, "a", lambda: None)
    store.set(P.drain("a"), encode(DrainRecord(node="a")), None)
    orders.refresh(1.0)
    assert ordered(orders) == (True, None)
    store.set(P.drain("a"), b"?", 0)
    orders.refresh(2.0)
    assert ordered(orders) == (False, None)
    assert P.drain("a") in caplog.text
    orders.close()


def test_a_cordoned_node_keeps_its_workers_and_gets_none(server: Server) -> None:
    server.node("a", slots=2)
    server.http.post("/api/v1/jobs", json={**SUBMIT, "max_np": 4})
    server.controller.step()
    assert server.http.post("/api/v1/nodes/a/cordon").json() == {"node": "a", "cordoned": True, "there": True}
    server.node("b", slots=1)
    server.http.post("/api/v1/jobs", json={**SUBMIT, "job": "k"})
    server.controller.step()
    row = server.http.get("/api/v1/nodes").json()["nodes"][0]
    assert (row["cordoned"], row["draining"], row["drain"], len(row["workers"])) == (True, False, None, 2)
    assert nodes_of_job(server) == ["a", "a"]
    assert server.http.post("/api/v1/nodes/a/uncordon").json() == {"node": "a", "cordoned": False}
    assert server.http.get("/api/v1/nodes").json()["nodes"][0]["cordoned"] is False


def test_a_drain_takes_the_place_of_a_cordon_and_not_the_other_way_round(server: Server) -> None:
    server.node("a")
    server.http.post("/api/v1/nodes/a/cordon")
    refused(server.http.post("/api/v1/nodes/a/undrain"), 404, "nobody drains node a: edl uncordon a is what", "node")
    assert server.http.post("/api/v1/nodes/a/drain").status_code == 200
    refused(server.http.post("/api/v1/nodes/a/cordon"), 409, "node a drains, so it takes no workers")
    refused(server.http.post("/api/v1/nodes/a/uncordon"), 404, "nobody cordons node a: edl undrain a is what", "node")
    server.http.post("/api/v1/nodes/a/undrain")
    refused(server.http.post("/api/v1/nodes/a/uncordon"), 404, "nobody cordons node a", "node")


def test_cordons_that_cannot_be(server: Server) -> None:
    refused(server.http.post("/api/v1/nodes/a/cordon"), 404, "there is no node a", "node")
    assert server.http.post("/api/v1/nodes/a/cordon", json={"absent": True}).json()["there"] is False
    refused(server.http.post("/api/v1/nodes/a/cordon", json={"deadline_s": 1}), 422, "has no deadline_s", "deadline_s")
    refused(server.http.post("/api/v1/nodes/a/cordon", json={"x": 1}), 422, "has no field 'x'", "x")


def test_a_jobclient_starts_what_was_planned_before_a_cordon() -> None:
    store = MemoryStore()
    orders = Orders(store, P, "a", lambda: None)
    store.set(P.drain("a"), encode(DrainRecord(node="a", cordon=True)), None)
    orders.refresh(0.0)
    assert (orders.drained, orders.leave_by_s) == (False, None)
    store.set(P.drain("a"), encode(DrainRecord(node="a", deadline_s=5.0)), 0)
    orders.refresh(1.0)
    assert (orders.drained, orders.leave_by_s) == (True, 6.0)
    orders.close()
    store.close()
