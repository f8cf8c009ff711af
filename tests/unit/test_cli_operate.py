"""The commands of those who operate a cluster: set, cancel, retry, cordon, top, completion."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_cli import ROOT, Cluster, P, modules_after

from edl_collective.coord.records import JobStatus, NodeRecord, Phase, Progress, Spent, encode
from jobserver.cli import following
from jobserver.cli.changes import _await_end
from jobserver.cli.client import StreamLost
from jobserver.cli.completion import VARIABLE
from jobserver.cli.main import COMMANDS, edl


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as found:
        for name in "ab":
            node = NodeRecord(node=name, incarnation="i", address="127.0.0.1", port=1, slots=2)
            found.store.set(P.node(name), encode(node), None)
        found.edl("submit", "--name", "j", "--max-np", "2", "--checkpoint", "file:///c", "--", "x")
        found.controller.step()
        yield found


def end(cluster: Cluster, phase: Phase) -> None:
    status = cluster.store.get(P.status("j"))
    assert status is not None
    cluster.store.set(P.status("j"), encode(JobStatus(phase=phase, reason="r", since=1.0)), status.version)


def test_set_changes_several_things_at_once(cluster: Cluster) -> None:
    result = cluster.edl("set", "j", "--priority", "5", "--np", "4", "--max-np", "8")
    version = cluster.json("describe", "j")["version"]
    assert result.output == f"job j has max_np 8, np 4, priority 5 (version {version})\n"
    assert cluster.edl("set", "j", "--np", "auto").output.startswith("job j has np auto")
    assert cluster.json("set", "j", "--spares", "1", "--min-np", "2")["spec"]["spares"] == 1


def test_set_on_a_version(cluster: Cluster) -> None:
    version = cluster.json("describe", "j")["version"]
    assert f"version    {version}" in cluster.edl("describe", "j").output
    assert cluster.edl("set", "j", "--priority", "5", "--if-version", version).exit_code == 0
    late = cluster.edl("set", "j", "--priority", "6", "--if-version", version)
    assert (late.exit_code, "job j was changed meanwhile" in late.output) == (1, True)
    assert cluster.json("describe", "j")["priority"] == 5


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["set", "j"], 2, "give at least one of --np"),
        (["set", "j", "--np", "many"], 2, "give a number of workers, or auto"),
        (["set", "j", "--min-np", "3"], 2, "min_np must not exceed max_np"),
        (["set", "k", "--np", "1"], 1, "there is no job k"),
        (["retry", "j"], 1, "job j has not ended, it is running"),
        (["cancel", "k"], 1, "there is no job k"),
        (["cordon", "c"], 1, "edl cordon c --absent"),
        (["uncordon", "a"], 1, "nobody cordons node a"),
        (["top", "--every", "0"], 2, "--every"),
        (["completion", "tcsh"], 2, "is not one of"),
    ],
)
def test_what_goes_wrong_is_one_line(cluster: Cluster, arguments: list[str], status: int, text: str) -> None:
    result = cluster.edl(*arguments)
    assert (result.exit_code, text in result.output, "Traceback" in result.output) == (status, True, False)


def test_cancel_waits_for_the_end_and_retry_begins_again(cluster: Cluster) -> None:
    late = cluster.edl("cancel", "j", "--reason", "wrong data", "--timeout", "0")
    assert (late.exit_code, "has not ended within --timeout 0 s" in late.output) == (1, True)

    def turn() -> None:
        for _ in range(3):
            cluster.controller.step()

    thread = threading.Timer(0.05, turn)
    thread.start()
    assert cluster.edl("cancel", "j").output == "job j has ended: stopped, stopped as asked: wrong data\n"
    thread.join()
    assert cluster.json("cancel", "j")["phase"] == "stopped"
    assert cluster.edl("retry", "j").output == "job j is submitted again: it goes on from file:///c\n"
    cluster.controller.step()
    assert cluster.json("describe", "j")["phase"] == "running"
    end(cluster, Phase.SUCCEEDED)
    assert "there is nothing to retry" in cluster.edl("retry", "j").output


def test_cordon_and_uncordon(cluster: Cluster) -> None:
    assert cluster.edl("cordon", "a").output == "node a takes no new workers\n"
    assert "cordoned" in cluster.edl("nodes").output
    assert cluster.json("uncordon", "a") == {"node": "a", "cordoned": False}
    away = "node c takes no new workers\nnode c is not there now: it takes no workers when it comes\n"
    assert cluster.edl("cordon", "c", "--absent").output == away


def test_top_shows_where_the_time_goes(cluster: Cluster) -> None:
    spent = Spent(by="w1", began_at=1000.0, began_step=0, fresh=True, seconds={"train": 8.0, "checkpoint": 2.0})
    progress = Progress(
        generation=1, world_size=2, epoch=0, step=7, samples_per_s=100.0, last_step_at=1000.0, spent=spent
    )
    cluster.store.set(P.progress("j"), encode(progress), None)
    cluster.edl("submit", "--name", "wide", "--min-np", "9", "--max-np", "9", "--", "x")
    cluster.controller.step()
    text = cluster.edl("top", "--once").output
    assert text.splitlines()[0] == "2 jobs, 1 of them wait; 2 workers train 100.0 samples/s"
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["j", "wide"]
    assert " ".join(text.splitlines()[2].split()) == "j running 0 2/2 7 100.0 80% checkpoint 20% -"
    row = cluster.json("top", "--once")["jobs"][0]
    assert (row["job"], row["train_part"], row["goodput"]["checkpoint"]) == ("j", 0.8, 2.0)
    assert "queue" in cluster.edl("describe", "wide").output
    end(cluster, Phase.FAILED)
    assert [row["job"] for row in cluster.json("top", "--once")["jobs"]] == ["wide"]
    assert [row["job"] for row in cluster.json("top", "--once", "--all")["jobs"]] == ["wide", "j"]


def test_top_shows_changes_as_they_come(cluster: Cluster) -> None:
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "EDL_KEY_FILE": str(cluster.key_file)}
    command = [sys.executable, "-m", "jobserver.cli.main", "top", "--json", "--every", "0.1", "--server", cluster.url]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as top:
        late = threading.Timer(90.0, top.kill)
        late.start()
        assert top.stdout is not None
        assert json.loads(top.stdout.readline())["jobs"][0]["priority"] == 0
        cluster.edl("set", "j", "--priority", "7")
        while json.loads(top.stdout.readline())["jobs"][0]["priority"] != 7:
            pass  # a look that was under way
        top.send_signal(signal.SIGINT)
        assert top.wait() == 0
        late.cancel()
        late.join()


def test_cancel_goes_on_waiting_when_the_server_is_lost_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "FIRST_RETRY_S", 0.001)
    ended = {"topic": "job/j", "full": True, "parts": {"phase": "stopped"}, "gone": []}
    streams: list[list[tuple[str, object]]] = [[("beat", {})], [("beat", {}), ("change", ended)]]

    class Losing:
        def stream(self, longest_s: float, *, job: str) -> Iterator[tuple[str, object]]:
            assert 0 < longest_s <= 60
            yield from streams.pop(0)
            raise StreamLost("gone")

        def get(self, path: str) -> dict[str, str]:
            assert (path, streams) == ("/jobs/j", [])
            return {"phase": "stopped"}

    assert _await_end(Losing(), "j", 60.0) == {"phase": "stopped"}  # type: ignore[arg-type]


def complete(shell: str, words: str, **environment: str) -> list[str]:
    """What a shell would offer behind `words`."""
    asked = {VARIABLE: f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **asked, **environment}
    program = "from jobserver.cli.main import edl; edl(prog_name='edl')"
    result = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


def test_completion_offers_commands_jobs_and_nodes(cluster: Cluster) -> None:
    where = {"EDL_SERVER": cluster.url, "EDL_KEY_FILE": str(cluster.key_file)}
    assert complete("bash", "edl un") == ["undrain", "uncordon"]
    assert complete("bash", "edl describe ", **where) == ["j"]
    assert complete("bash", "edl drain ", **where) == ["a", "b"]
    assert complete("bash", "edl drain b", **where) == ["b"]
    assert complete("bash", f"edl stop --server {cluster.url} ", EDL_KEY_FILE=where["EDL_KEY_FILE"]) == ["j"]


def test_completion_is_quiet_where_nobody_answers(tmp_path: Path) -> None:
    assert complete("bash", "edl describe ", EDL_SERVER="http://127.0.0.1:1", EDL_KEY_FILE=str(tmp_path / "no")) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(shell: str) -> None:
    result = CliRunner().invoke(edl, ["completion", shell])
    assert (result.exit_code, VARIABLE in result.output, f"{shell}_complete" in result.output) == (0, True, True)


def test_completing_a_command_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "edl s")
    monkeypatch.setenv("COMP_CWORD", "1")
    loaded = modules_after([])
    assert "click" in loaded
    assert loaded & {"httpx", "fastapi", "torch", "rich"} == set()


def test_every_command_has_an_example_in_the_docs() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    missing = [name for name in COMMANDS if f"\nedl {name}" not in text]
    assert missing == []


def test_a_save_that_failed_is_shown_with_the_job_while_it_trains(cluster: Cluster) -> None:
    progress = Progress(generation=1, world_size=2, epoch=0, step=7, message="step 7 was not saved: the disk is full")
    cluster.store.set(P.progress("j"), encode(progress), None)
    assert cluster.json("ps")["jobs"][0]["reason"].endswith("; step 7 was not saved: the disk is full")
    assert "the disk is full" in cluster.edl("describe", "j").output
    end(cluster, Phase.SUCCEEDED)
    assert cluster.json("ps")["jobs"][0]["reason"] == "r"
