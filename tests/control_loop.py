"""For tests of a JobServer's control loop: one on any store, records to put there, and the plan that comes of them."""

import time
from collections.abc import Callable

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.clock import ManualClock, SystemClock
from edl_collective.coord.leadership import Leadership
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import JobSpec, NodeRecord, Plan, Record, decode, encode
from edl_collective.coord.signing import SpecSigner
from edl_collective.coord.store import Store
from jobserver.controller import Controller
from jobserver.reconcile import ReconcileConfig

P = Paths("/controller")
NODE = NodeRecord(node="a", incarnation="i", address="127.0.0.1", port=1, slots=8)
SPEC = JobSpec(job="j", command=("x",), max_np=8, np=2)
SIGNER = SpecSigner(ClusterKey(b"a key for tests, thirty-two byte"))


def controller_on(store: Store, name: str = "s1", clock: ManualClock | SystemClock | None = None) -> Controller:
    leadership = Leadership(store, P, name, f"http://{name}")
    return Controller(store, P, leadership, clock or ManualClock(1000.0), ReconcileConfig(), SIGNER)


def put(store: Store, path: str, record: Record) -> None:
    found = store.get(path)
    data = SIGNER.sign(path, record) if isinstance(record, JobSpec) else encode(record, path)
    store.set(path, data, None if found is None else found.version)


def plan_of(store: Store, paths: Paths = P, job: str = "j") -> Plan | None:
    found = store.get(paths.plan(job))
    return None if found is None else decode(found.data, Plan)


def has_workers(store: Store, paths: Paths, count: int) -> bool:
    plan = plan_of(store, paths)
    return plan is not None and len(plan.workers) == count


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait for a state that other processes reach; there is no event to wait for across them."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the expected state was not reached"
        time.sleep(0.005)
