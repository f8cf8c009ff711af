"""One proxy for each job, and another one for a job of the same name that was submitted later."""

from collections.abc import Callable

from edl_collective.coord.records import DriverRecord
from edl_collective.messages import AgentMessage, Leave
from jobclient.proxies import Proxies

DRIVER = DriverRecord(node="b", host="h", port=1, epoch=1, pid=1)


class Remembering:
    """A proxy that notes what happens to it."""

    def __init__(self, send: Callable[[str, AgentMessage], None]) -> None:
        self.send = send
        self.log: list[object] = []

    def worker_gate(self, worker: str, last_generation: int) -> None:
        raise AssertionError("nobody calls this here")

    worker_running = worker_gate

    def worker_finished(self, worker: str) -> None:
        raise AssertionError("nobody calls this here")

    def worker_exited(self, worker: str, detail: str) -> None:
        raise AssertionError("nobody calls this here")

    def driver_changed(self, driver: DriverRecord | None) -> None:
        self.log.append(driver)

    async def start(self) -> None:
        self.log.append("start")

    async def close(self) -> None:
        self.log.append("close")


class Made:
    """Proxies, those that they made, and what was delivered."""

    def __init__(self) -> None:
        self.all: list[Remembering] = []
        self.sent: list[tuple[str, str, AgentMessage]] = []
        self.proxies = Proxies(self._make, lambda *message: self.sent.append(message))

    def _make(self, _job: str, send: Callable[[str, AgentMessage], None]) -> Remembering:
        self.all.append(Remembering(send))
        return self.all[-1]


async def test_a_later_job_of_the_same_name_gets_its_own() -> None:
    made = Made()
    for submitted_at in (1.0, 1.0, 2.0):
        await made.proxies.open("j", submitted_at, DRIVER)
    old, new = made.all
    assert old.log == ["start", DRIVER, "close"]
    assert new.log == ["start", DRIVER]
    assert made.proxies.of("j", 1.0) is None
    assert made.proxies.of("j", 2.0) is new
    new.send("w1", Leave(reason="t"))
    assert made.sent == [("j", "w1", Leave(reason="t"))]


async def test_a_proxy_hears_of_its_own_drivers_alone() -> None:
    made = Made()
    await made.proxies.open("j", 1.0, None)
    made.proxies.driver_changed("j", 2.0, DRIVER)
    made.proxies.driver_changed("k", 1.0, DRIVER)
    assert made.all[0].log == ["start", None]
    made.proxies.driver_changed("j", 1.0, DRIVER)
    made.proxies.driver_changed("j", None, None)
    assert made.all[0].log == ["start", None, DRIVER, None]


async def test_what_nobody_needs_is_closed() -> None:
    made = Made()
    await made.proxies.open("j", 1.0, None)
    await made.proxies.open("k", 1.0, None)
    assert await made.proxies.keep({("k", 1.0), ("j", 2.0)}) == ["j"]
    assert [proxy.log[-1] for proxy in made.all] == ["close", None]
