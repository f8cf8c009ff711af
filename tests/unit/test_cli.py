"""The command edl against a JobServer's HTTP interface in this process, and what it imports."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from canned_server import CannedServer, http
from click.testing import CliRunner, Result

from edl_collective.coord.clock import ManualClock
from edl_collective.coord.key_file import load_or_create_key
from edl_collective.coord.leadership import Leadership
from edl_collective.coord.memory_store import MemoryStore
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import Event, JobStatus, NodeRecord, Phase, WorkerRecord, WorkerState, encode
from edl_collective.coord.signing import SpecSigner
from edl_collective.shadowing import ShadowedError, check_not_shadowed
from jobserver.api import Service, create_app
from jobserver.cli.jobs import default_name, parse_schedule
from jobserver.cli.main import COMMANDS, edl
from jobserver.controller import Controller
from jobserver.reconcile import ReconcileConfig

P = Paths()
ROOT = Path(__file__).resolve().parents[2]


class Cluster:
    """A JobServer on a real port, and the command line that talks to it."""

    def __init__(self, folder: Path) -> None:
        self.key_file = folder / "key"
        self.store = MemoryStore()
        clock = ManualClock(1000.0)
        key = load_or_create_key(self.key_file)
        self.controller = Controller(
            self.store, P, Leadership(self.store, P, "s", "http://s"), clock, ReconcileConfig(), SpecSigner(key)
        )
        app = create_app(Service(self.store, P, self.controller, clock, key, None))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self._http = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        self._thread = threading.Thread(target=self._http.run, kwargs={"sockets": [self.listener]})

    def __enter__(self) -> "Cluster":
        self._thread.start()
        while not self._http.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._http.should_exit = True
        self._thread.join()
        self.listener.close()
        self.controller.stop()

    def edl(self, *arguments: str) -> Result:
        environment = {"EDL_SERVER": self.url, "EDL_KEY_FILE": str(self.key_file)}
        return CliRunner().invoke(edl, list(arguments), env=environment)

    def json(self, *arguments: str) -> dict[str, Any]:
        result = self.edl(*arguments, "--json")
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that its tests do not change."""
    with Cluster(tmp_path_factory.mktemp("idle")) as found:
        yield found


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("0:1,2:2", {"epochs": [{"epoch": 0, "np": 1}, {"epoch": 2, "np": 2}]}),
        ("0s:1, 1.5s:3", {"times": [{"after_s": 0.0, "np": 1}, {"after_s": 1.5, "np": 3}]}),
        ("60s:2", {"times": [{"after_s": 60.0, "np": 2}]}),
        ("900s:-1+2", {"change": {"every_s": 900.0, "remove": 1, "add": 2}}),
    ],
)
def test_schedules(text: str, schedule: object) -> None:
    assert parse_schedule(text) == schedule


@pytest.mark.parametrize("text", ["", "1", "0:1,2s:2", "a:b", "1.5:2", "0:-1", "0:1,", "-1:2"])
def test_schedules_that_are_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match="schedule"):
        parse_schedule(text)


@pytest.mark.parametrize(
    ("command", "name"),
    [(("python", "my train.py", "--x"), "my-train"), (("/bin/run.sh",), "run"), (("...",), "job")],
)
def test_a_job_is_named_after_its_script(command: tuple[str, ...], name: str) -> None:
    assert default_name(command) == name


def test_the_life_of_a_job(cluster: Cluster, tmp_path: Path) -> None:
    node = NodeRecord(
        node="a",
        incarnation="i",
        address="127.0.0.1",
        port=1,
        slots=4,
        labels={"rack": "7", "unhealthy": "GPU 1: late"},
    )
    cluster.store.set(P.node("a"), encode(node), None)
    submit = ["submit", "--name", "j", "--max-np", "4", "--np", "2", "--checkpoint", "file:///c", "--env", "A=b=c"]
    result = cluster.edl(*submit, "--work-dir", str(tmp_path), "--", "python", "train.py", "--epochs", "3")
    assert (result.exit_code, result.output) == (0, "job j is submitted\n")
    cluster.controller.step()
    spec = cluster.json("describe", "j")["spec"]
    assert spec["command"] == ["python", "train.py", "--epochs", "3"]
    assert (spec["env"], spec["checkpoint_url"], spec["work_dir"]) == ({"A": "b=c"}, "file:///c", str(tmp_path))
    assert "2 workers: np 2 was asked for" in cluster.edl("ps").output
    assert "a:" not in cluster.edl("nodes").output
    assert "j:w1 j:w2" in cluster.edl("nodes").output
    assert "rack=7,unhealthy=GPU 1: late" in cluster.edl("nodes").output
    assert cluster.edl("scale", "j", "3").output == "job j wants 3 workers\n"
    cluster.controller.step()
    described = cluster.edl("describe", "j").output
    assert "revision 2, driver on a: 2 to 3 workers: np 3 was asked for" in described
    assert "2 to 3 workers" in cluster.edl("events", "j").output
    assert cluster.json("scale", "j", "auto")["spec"]["np"] is None
    assert cluster.edl("stop", "j").exit_code == 0
    cluster.controller.step()
    cluster.controller.step()
    assert cluster.json("ps")["jobs"][0]["phase"] == "stopped"
    assert cluster.edl("delete", "j").output == "job j is forgotten\n"
    assert cluster.json("ps") == {"jobs": []}


def test_spares_and_drains(cluster: Cluster) -> None:
    node = NodeRecord(node="a", incarnation="i", address="127.0.0.1", port=1, slots=4)
    cluster.store.set(P.node("a"), encode(node), None)
    options = ["--np", "2", "--spares", "1", "--warm-timeout", "60", "--return-timeout", "3"]
    spec = cluster.json("submit", "--name", "j", *options, "--max-np", "2", "x")["spec"]
    assert (spec["spares"], spec["warm_timeout_s"], spec["return_timeout_s"]) == (1, 60.0, 3.0)
    cluster.controller.step()
    assert "j:w1 j:w2 j:w3 (spare)" in cluster.edl("nodes").output
    assert "spares     1 of 1" in cluster.edl("describe", "j").output
    assert cluster.edl("drain", "a", "--deadline", "30").output == "node a drains, within 30 s\n"
    assert cluster.json("nodes")["nodes"][0]["drain"]["deadline_s"] == 30.0
    assert cluster.json("drain", "a") == {"node": "a", "draining": True, "deadline_s": None, "there": True}
    assert "draining" in cluster.edl("nodes").output
    assert cluster.edl("undrain", "a").output == "node a takes workers again\n"
    assert "ready" in cluster.edl("nodes").output
    assert cluster.edl("undrain", "a").exit_code == 1
    assert cluster.edl("drain", "b").exit_code == 1
    absent = "node b drains\nnode b is not there now: it takes no workers when it comes\n"
    assert cluster.edl("drain", "b", "--absent").output == absent
    assert cluster.edl("drain", "a", "--deadline", "-1").exit_code == 2


def test_submit_reads_a_schedule(cluster: Cluster) -> None:
    submit = ["submit", "--min-np", "1", "--max-np", "4", "--schedule", "0:1,2:4", "python", "t.py"]
    answer = cluster.json(*submit)
    assert answer["spec"]["schedule"]["epochs"] == [{"epoch": 0, "np": 1}, {"epoch": 2, "np": 4}]
    assert (answer["job"], answer["spec"]["work_dir"]) == ("t", os.getcwd())


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["describe", "nope"], 1, "there is no job nope"),
        (["submit", "--min-np", "5", "--max-np", "2", "--", "x"], 2, "min_np must not exceed max_np"),
        (["submit", "--np", "0", "--", "x"], 2, "np is 0"),
        (["submit"], 2, "the command is missing"),
        (["submit", "python", "x.py", "--epochs", "3"], 2, "What runs comes after --"),
        (["submit", "--hold-timeout", "nan", "--", "x"], 2, "give finite numbers"),
        (["submit", "--max-np", "1" + "0" * 20, "--", "x"], 2, "max_np is 1000"),
        (["submit", "--spares", "1000001", "--", "x"], 2, "it must be at most 1000000"),
        (["drain", "a", "--deadline", "nan"], 2, "give finite numbers"),
        (["up", "--slots", "0"], 2, "--slots is '0'"),
        (["up", "--slots", "some"], 2, "--slots is 'some'"),
        (["up", "--server-port", "99999"], 2, "it must be between 1 and 65535"),
        (["submit", "--schedule", "soon", "--", "x"], 2, "schedule 'soon' is not understood"),
        (["submit", "--env", "A", "--", "x"], 2, "--env 'A' is not NAME=VALUE"),
        (["scale", "j", "many"], 2, "give a number of workers"),
        (["scale", "j"], 2, "Missing argument 'NP'"),
        (["nonsense"], 2, "No such command"),
        (["ps", "--server", "nowhere"], 2, "is not an address"),
        (["events", "-f", "j", "--server", "nowhere"], 2, "is not an address"),
        (["describe", "a/b"], 2, "'a/b' cannot name a job"),
        (["describe", ""], 2, "'' cannot name a job"),
        (["delete", "j?x=1"], 2, "cannot name a job"),
        (["logs", "j", "../w1"], 2, "'../w1' cannot name a worker"),
        (["drain", "a b"], 2, "'a b' cannot name a node"),
        (["teacher", "ls", "a/b"], 2, "cannot name a service"),
        (["ps", "--token", "\N{SNOWMAN}"], 2, "is not a token"),
        (["ps", "--token", "a b"], 2, "is not a token"),
        (["ps", "--token", "wrong"], 1, "bearer token is missing or wrong"),
        (["set", "j", "--np", "1", "--if-version", "1\n2"], 2, "--if-version is not a version"),
        (["scale", "j", "9" * 5000], 2, "give a number of workers"),
        (["submit", "--", "\udcff"], 2, "is not UTF-8"),
        (["ps", "--server", "http://127.0.0.1:1"], 1, "check --server / EDL_SERVER"),
        (["ps", "--key-file", "/nope/key"], 2, "key file /nope/key: cannot be read"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(idle: Cluster, arguments: list[str], status: int, text: str) -> None:
    result = idle.edl(*arguments)
    assert result.exit_code == status, result.output
    assert text in result.output
    assert "Traceback" not in result.output
    assert [line.startswith("Error: ") for line in result.stderr.splitlines()][-1]


@pytest.mark.parametrize("answer", [http(200, b"<html>hello"), http(307, b"", Location="/x"), http(404, b"not here")])
def test_a_server_of_another_kind_is_named(tmp_path: Path, answer: bytes) -> None:
    load_or_create_key(tmp_path / "key")
    with CannedServer([answer]) as other:
        environ = {"EDL_SERVER": other.url, "EDL_KEY_FILE": str(tmp_path / "key")}
        result = CliRunner().invoke(edl, ["ps"], env=environ)
    assert result.exit_code == 1, result.output
    assert "is that a JobServer? (--server, EDL_SERVER)" in result.output
    assert isinstance(result.exception, SystemExit)


def test_what_a_job_says_does_not_drive_the_terminal(cluster: Cluster) -> None:
    hostile = "red \x1b[31m title \x1b]0;owned\x07 back \r\x08 \x9b1m"
    cluster.edl("submit", "--name", "j", "--", "x", hostile)
    status = JobStatus(phase=Phase.FAILED, reason=hostile, since=1.0)
    cluster.store.set(P.status("j"), encode(status), None)
    cluster.store.append(P.event_prefix("j"), encode(Event(at=1.0, kind="worker", text=hostile)))
    for command in (["ps"], ["describe", "j"], ["events", "j"], ["top", "--once", "--all"], ["retry", "j", "--json"]):
        found = cluster.edl(*command).stdout
        assert "red" in found or command[0] == "top"
        assert [character for character in found if not character.isprintable() and character != "\n"] == []


def test_up_does_not_take_another_server_for_its_own(idle: Cluster, tmp_path: Path) -> None:
    port = str(idle.listener.getsockname()[1])
    result = idle.edl("up", "--server-port", port, "--data-dir", str(tmp_path), "--zookeeper-port", "0")
    assert (result.exit_code, f"--server-port {port} cannot be listened on" in result.stderr) == (2, True), (
        result.output
    )
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_key_is_refused(idle: Cluster, tmp_path: Path) -> None:
    load_or_create_key(tmp_path / "other")
    result = idle.edl("ps", "--key-file", str(tmp_path / "other"))
    assert (result.exit_code, "bearer token" in result.output) == (1, True)


def test_logs_of_a_job_without_workers(cluster: Cluster) -> None:
    cluster.edl("submit", "--name", "j", "--", "x")
    cluster.controller.step()
    result = cluster.edl("logs", "j")
    assert (result.exit_code, "has no worker yet: too few slots" in result.output) == (2, True)


def test_logs_of_a_node_that_is_gone(cluster: Cluster) -> None:
    cluster.edl("submit", "--name", "j", "--", "x")
    record = WorkerRecord(worker="w1", node="a", slot=0, incarnation="i", state=WorkerState.RUNNING)
    cluster.store.set(P.worker("j", "w1"), encode(record), None)
    result = cluster.edl("logs", "j")
    assert (result.exit_code, "node a, which is gone" in result.output) == (1, True)


def modules_after(arguments: list[str]) -> set[str]:
    """Names of the modules that `edl ARGUMENTS` loads, in a process of its own."""
    program = (
        "import atexit, sys, runpy; sys.argv[1:] = sys.argv[1:];"
        "atexit.register(lambda: print('\\n' + ' '.join(sys.modules)));"
        "from jobserver.cli.main import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    return {name.partition(".")[0] for name in result.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [
        (["ps", "--server", "http://127.0.0.1:1"], {"torch", "horovod", "fastapi", "starlette", "kazoo"}),
        (["--help"], {"torch", "fastapi", "kazoo", "httpx"}),
        (["ckpt", "ls", "file:///nowhere/at/all"], {"torch", "fastapi", "starlette", "uvicorn", "kazoo"}),
    ],
)
def test_a_command_imports_only_what_it_needs(arguments: list[str], forbidden: set[str]) -> None:
    loaded = modules_after(arguments)
    assert "click" in loaded
    assert loaded & forbidden == set()


def test_every_command_exists_and_explains_itself() -> None:
    for name in COMMANDS:
        result = CliRunner().invoke(edl, [name, "--help"])
        assert result.exit_code == 0, name
        assert COMMANDS[name][1].rstrip(".").split(" ")[0] in result.output, name


def test_checkpoints_are_listed(tmp_path: Path) -> None:
    result = CliRunner().invoke(edl, ["ckpt", "ls", f"file://{tmp_path}", "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"checkpoints": []})


@pytest.mark.parametrize("name", ["checkpoints.py", "distill.py", "checkpoints/__init__.py"])
def test_a_file_that_hides_a_package_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    with pytest.raises(ShadowedError) as raised:
        check_not_shadowed([str(tmp_path), str(ROOT)])
    assert (
        str(raised.value) == f"{file} hides EDL's package {name.split('/')[0].removesuffix('.py')!r}: rename that file"
    )


def test_a_folder_of_checkpoints_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    check_not_shadowed([str(tmp_path), str(ROOT)])


def test_the_command_line_refuses_to_start_where_it_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "checkpoints.py").touch()

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "jobserver" / "cli" / "main.py"), "--help"]
        variables = {**os.environ, **environment}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables, check=False)

    hidden = run(PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert (hidden.returncode, hidden.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path / 'checkpoints.py'} hides EDL's package 'checkpoints'" in hidden.stderr
    beside = run(PYTHONPATH=str(ROOT))
    assert (beside.returncode, "Warning: " in beside.stderr) == (0, True)


class TestDiscovery:
    """scripts/discover_hosts.sh as horovodrun calls it."""

    @staticmethod
    def run(cluster: Cluster, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {"EDL_SERVER": cluster.url, "EDL_KEY_FILE": str(cluster.key_file), "EDL_JOB": "j"}
        variables |= {"EDL_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "EDL_DISCOVERY_WAIT_S": "0"}
        variables |= {"PATH": os.environ["PATH"], **environment}
        return subprocess.run(
            [str(ROOT / "scripts" / "discover_hosts.sh")], capture_output=True, text=True, env=variables, check=False
        )

    def test_hosts_with_their_slots(self, cluster: Cluster) -> None:
        cluster.edl("submit", "--name", "j", "--kind", "external", "--max-np", "3", "--", "x")
        waiting = self.run(cluster)
        assert (waiting.returncode, waiting.stdout) == (0, "")
        for name, address in (("a", "127.0.0.1"), ("b", "localhost")):
            node = NodeRecord(node=name, incarnation="i", address=address, port=1, slots=2)
            cluster.store.set(P.node(name), encode(node), None)
        cluster.controller.step()
        found = self.run(cluster)
        assert (found.returncode, found.stdout) == (0, "127.0.0.1:2\nlocalhost:1\n")

    def test_failures_have_a_sentence(self, cluster: Cluster) -> None:
        cases: list[tuple[dict[str, str], int, str]] = [
            ({}, 1, "there is no job j"),
            ({"EDL_SERVER": "http://127.0.0.1:1"}, 1, "no JobServer answers"),
            ({"EDL_JOB": ""}, 2, "EDL_JOB is not set"),
            ({"EDL_SERVER": "ftp://x"}, 2, "give http://host:port"),
            ({"EDL_DISCOVERY_WAIT_S": "x"}, 2, "could not convert"),
        ]
        for environment, status, text in cases:
            result = self.run(cluster, **environment)
            assert (result.returncode, result.stdout) == (status, ""), result.stderr
            assert text in result.stderr
