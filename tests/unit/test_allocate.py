"""Slots for jobs: none twice, minimums first, nobody moves without need."""

from hypothesis import given
from hypothesis import strategies as st

from edl_collective.coord.records import PlannedWorker
from jobserver.allocate import Grant, Request, Room, allocate
from jobserver.snapshot import Slot


def held(*places: tuple[str, int], first: int = 1) -> tuple[PlannedWorker, ...]:
    return tuple(PlannedWorker(f"w{first + i}", node, slot) for i, (node, slot) in enumerate(places))


def one(request: Request, room: Room) -> Grant:
    return allocate([request], room)[request.job]


def test_packs_beside_its_own_workers_and_fills_a_node_before_the_next() -> None:
    room = Room({"a": 2, "b": 4, "c": 2})
    assert one(Request("j", 1, 4), room).added == tuple(Slot("b", i) for i in range(4))
    grant = one(Request("j", 1, 3, held(("a", 0)), started=True), room)
    assert grant.added[0] == Slot("a", 1)


def test_spreads_over_the_emptiest_nodes() -> None:
    room = Room({"a": 2, "b": 2, "c": 2}, pack=False, taken={Slot("a", 0)})
    assert [s.node for s in one(Request("j", 1, 3), room).added] == ["b", "c", "a"]


def test_shrinks_from_the_newest() -> None:
    grant = one(Request("j", 1, 2, held(("a", 0), ("a", 1), ("b", 0), ("b", 1)), started=True), Room({"a": 2, "b": 2}))
    assert [w.worker for w in grant.kept] == ["w1", "w2"]
    assert [w.worker for w in grant.dropped] == ["w3", "w4"]


def test_the_slot_of_a_dropped_worker_is_not_given_at_once() -> None:
    requests = [Request("a", 1, 1, held(("n", 0), ("n", 1)), started=True), Request("b", 1, 1)]
    grants = allocate(requests, Room({"n": 2}))
    assert grants["b"].added == ()
    assert grants["b"].missing == 0  # it is only busy


def test_minimums_come_before_what_others_want_beyond_theirs() -> None:
    grants = allocate([Request("a", 1, 4), Request("b", 2, 4), Request("c", 1, 1)], Room({"n": 4}))
    assert [grants[j].count for j in "abc"] == [1, 2, 1]


def test_what_is_held_comes_before_growth_of_an_older_job() -> None:
    room = Room({"n": 4})
    grants = allocate(
        [Request("a", 1, 4, held(("n", 0)), True), Request("b", 1, 3, held(*[("n", i) for i in (1, 2, 3)]), True)], room
    )
    assert grants["b"].dropped == ()
    assert grants["a"].added == ()


def test_a_job_that_has_not_begun_gets_all_of_its_minimum_or_nothing() -> None:
    grants = allocate([Request("big", 4, 4), Request("small", 1, 2)], Room({"n": 3}))
    assert (grants["big"].count, grants["big"].missing) == (0, 1)
    assert grants["small"].count == 2


def test_a_job_that_began_keeps_what_it_holds_below_its_minimum() -> None:
    grant = one(Request("j", 3, 3, held(("n", 0)), started=True), Room({"n": 2}))
    assert (len(grant.kept), grant.added, grant.missing) == (1, (), 1)


def test_nodes_that_are_not_offered_lose_their_workers() -> None:
    grant = one(Request("j", 1, 2, held(("gone", 0), ("a", 1)), started=True), Room({"a": 4}))
    assert [w.node for w in grant.kept] == ["a"]
    assert grant.added == (Slot("a", 0),)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Request], Room]:
    nodes = {f"n{i}": draw(st.integers(0, 4)) for i in range(draw(st.integers(0, 4)))}
    slots = draw(st.permutations([Slot(n, i) for n, count in nodes.items() for i in range(count)]))
    requests, number = [], 1
    for name in "abc"[: draw(st.integers(0, 3))]:
        least = draw(st.integers(1, 4))
        mine = [slots.pop() for _ in range(min(draw(st.integers(0, 4)), len(slots)))]
        number += len(mine)
        workers = held(*mine, first=number)
        requests.append(Request(name, least, least + draw(st.integers(0, 4)), workers, bool(mine)))
    taken = {slots.pop() for _ in range(min(draw(st.integers(0, 2)), len(slots)))}
    leaving = {slots.pop() for _ in range(min(draw(st.integers(0, 2)), len(slots)))}
    draining = draw(st.sets(st.sampled_from(sorted(nodes)), max_size=1)) if nodes else set()
    offered = {n: c for n, c in nodes.items() if n not in draining}
    return requests, Room(offered, taken, leaving, draw(st.booleans()))


@given(clusters())
def test_no_slot_twice_and_every_bound_kept(cluster: tuple[list[Request], Room]) -> None:
    requests, room = cluster
    grants = allocate(requests, room)
    assert grants == allocate(requests, room)
    used: list[Slot] = [*room.taken]
    for request in requests:
        grant = grants[request.job]
        assert set(grant.kept) | set(grant.dropped) == set(request.held)
        assert len(grant.kept) + len(grant.dropped) == len(request.held)
        assert grant.count <= request.want
        assert not set(grant.added) & (set(room.leaving) | {Slot(w.node, w.slot) for r in requests for w in r.held})
        assert not (
            grant.kept
            and grant.added
            and len(grant.dropped)
            and any(room.holds(Slot(w.node, w.slot)) for w in grant.dropped)
        )
        used += [*grant.added, *(Slot(w.node, w.slot) for w in grant.kept)]
    assert len(used) == len(set(used))
    assert all(room.holds(slot) for slot in set(used) - set(room.taken))


@given(clusters())
def test_stable_once_applied(cluster: tuple[list[Request], Room]) -> None:
    requests, room = cluster
    for _ in range(2):  # the first round settles; slots of the dropped stay busy
        grants = allocate(requests, room)
        dropped = {Slot(w.node, w.slot) for g in grants.values() for w in g.dropped}
        room = Room(room.nodes, room.taken, set(room.leaving) | dropped, room.pack)
        requests = [
            Request(
                r.job,
                r.min_np,
                r.want,
                (*grants[r.job].kept, *held(*grants[r.job].added, first=100 * i)),
                r.started or grants[r.job].count > 0,
            )
            for i, r in enumerate(requests, 1)
        ]
    again = allocate(requests, room)
    assert all(not g.added and not g.dropped for g in again.values())
