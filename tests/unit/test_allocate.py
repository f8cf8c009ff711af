"""Slots for jobs: none twice, minimums first, nobody moves without need."""

from hypothesis import given, settings
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


def test_a_job_lets_go_what_another_needs_for_the_same_fulfilment() -> None:
    room = Room({"n": 4})
    grants = allocate(
        [Request("a", 1, 4, held(("n", 0)), True), Request("b", 1, 3, held(*[("n", i) for i in (1, 2, 3)]), True)], room
    )
    assert [w.worker for w in grants["b"].dropped] == ["w3"]
    assert grants["a"].added == (), "its slot is still busy"


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


# ---- spares --------------------------------------------------------------------------------------------------------


def test_spares_take_what_nobody_wants_on_another_node_than_the_workers() -> None:
    grant = one(Request("j", 1, 2, spares=2), Room({"a": 3, "b": 1, "c": 1}))
    assert (grant.added, grant.spare_slots) == ((Slot("a", 0), Slot("a", 1)), (Slot("b", 0), Slot("c", 0)))
    grants = allocate([Request("first", 1, 2, spares=2), Request("second", 1, 2)], Room({"a": 4}))
    assert [len(grants[j].spare_slots) for j in ("first", "second")] == [0, 0]
    assert grants["second"].count == 2


def test_a_job_that_waits_for_slots_gets_no_spare() -> None:
    grants = allocate([Request("big", 4, 4, spares=1), Request("small", 1, 1, spares=1)], Room({"n": 3}))
    assert (grants["big"].count, grants["big"].spare_slots) == (0, ())
    assert len(grants["small"].spare_slots) == 1
    busy = allocate([Request("j", 3, 3, spares=1)], Room({"n": 4}, leaving={Slot("n", 0), Slot("n", 1)}))["j"]
    assert (busy.count, busy.spare_slots) == (0, ()), "the free ones are what it waits for"


def test_a_spare_is_the_first_to_be_promoted() -> None:
    held_one, spare = held(("a", 0)), held(("b", 0), first=5)
    grant = one(Request("j", 1, 3, held_one, True, 1, spare, frozenset({"w1"})), Room({"a": 2, "b": 2}))
    assert ([w.worker for w in grant.kept], len(grant.added), grant.spares) == (["w1", "w5"], 1, ())
    assert len(grant.spare_slots) == 1


def test_a_spare_gives_its_slot_to_whoever_wants_one() -> None:
    spare = held(("n", 1), first=5)
    room = Room({"n": 2})
    requests = [Request("a", 1, 1, held(("n", 0)), True, 1, spare, frozenset({"w1"})), Request("b", 1, 1)]
    grants = allocate(requests, room)
    assert grants["a"].dropped == spare
    assert (grants["b"].count, grants["b"].missing) == (0, 0)
    waits = allocate([Request("a", 1, 1, held(("n", 0)), True, 1, (), frozenset({"w1"})), requests[1]],
                     Room({"n": 2}, leaving={Slot("n", 1)}))  # fmt: skip
    assert waits["a"].spare_slots == ()


def test_no_more_spares_go_than_slots_are_lacking() -> None:
    spares = held(("n", 1), ("n", 2), first=5)
    requests = [Request("a", 1, 1, held(("n", 0)), True, 2, spares, frozenset({"w1"})), Request("b", 1, 1)]
    grants = allocate(requests, Room({"n": 3}))
    assert [w.worker for w in grants["a"].dropped] == ["w6"]
    assert not allocate(requests, Room({"n": 4}))["a"].dropped


def test_who_is_not_in_the_world_yet_becomes_a_spare_and_who_is_leaves() -> None:
    workers = held(("a", 0), ("a", 1), ("b", 0))
    room = Room({"a": 2, "b": 2})
    joining = one(Request("j", 1, 2, workers, True, 1, (), frozenset({"w1", "w3"})), room)
    assert ([w.worker for w in joining.kept], [w.worker for w in joining.spares]) == (["w1", "w3"], ["w2"])
    inside = one(Request("j", 1, 2, workers, True, 1, (), frozenset({"w1", "w2", "w3"})), room)
    assert [w.worker for w in inside.dropped] == ["w3"]


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
        inside = frozenset(draw(st.sets(st.sampled_from([w.worker for w in workers])))) if workers else frozenset()
        places = [slots.pop() for _ in range(min(draw(st.integers(0, 2)), len(slots)))] if mine else []
        standing = held(*places, first=100 + number)
        least_most = (least, least + draw(st.integers(0, 4)))
        spares = draw(st.integers(0, 2))
        requests.append(Request(name, *least_most, workers, bool(mine), spares, standing, inside))
    taken = {slots.pop() for _ in range(min(draw(st.integers(0, 2)), len(slots)))}
    leaving = {slots.pop() for _ in range(min(draw(st.integers(0, 2)), len(slots)))}
    draining = draw(st.sets(st.sampled_from(sorted(nodes)), max_size=1)) if nodes else set()
    offered = {n: c for n, c in nodes.items() if n not in draining}
    return requests, Room(offered, taken, leaving, draw(st.booleans()))


@settings(deadline=None)
@given(clusters())
def test_no_slot_twice_and_every_bound_kept(cluster: tuple[list[Request], Room]) -> None:
    requests, room = cluster
    grants = allocate(requests, room)
    assert grants == allocate(requests, room)
    used: list[Slot] = [*room.taken]
    for request in requests:
        grant = grants[request.job]
        alive = (*request.held, *request.standing)
        assert sorted((*grant.kept, *grant.dropped, *grant.spares), key=repr) == sorted(alive, key=repr)
        assert grant.count <= request.want
        assert len(grant.spares) + len(grant.spare_slots) <= request.spares
        assert not {w.worker for w in grant.spares} & request.members, "a spare holds no state of a world"
        new = {*grant.added, *grant.spare_slots}
        assert not new & (set(room.leaving) | {Slot(w.node, w.slot) for r in requests for w in (*r.held, *r.standing)})
        if grant.added:
            assert not any(room.holds(Slot(w.node, w.slot)) for w in grant.dropped)
            assert not grant.spares, "a spare would have been promoted"
        living = (*grant.kept, *grant.spares)
        used += [*grant.added, *grant.spare_slots, *(Slot(w.node, w.slot) for w in living)]
    assert len(used) == len(set(used))
    assert all(room.holds(slot) for slot in set(used) - set(room.taken))


@settings(deadline=None)
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
                (*grants[r.job].kept, *held(*grants[r.job].added, first=1000 * i)),
                r.started or grants[r.job].count > 0,
                r.spares,
                (*grants[r.job].spares, *held(*grants[r.job].spare_slots, first=1000 * i + 50)),
                r.members,
            )
            for i, r in enumerate(requests, 1)
        ]
    again = allocate(requests, room)
    assert all(not g.added and not g.dropped and not g.spare_slots for g in again.values())
