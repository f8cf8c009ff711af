"""The main job, live: ResNet-50 on real images, with workers that join, leave and are killed.

Starts a private ZooKeeper, a JobServer and three nodes of two slots with `edl up`, submits the job with `edl submit`,
follows its events, kills what the story wants killed, and ends with a table. Nothing is left running, whatever happens.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from local_hdfs import LocalHdfs
from rich.console import Console
from rich.table import Table

from jobserver.cli.client import Api, CommandFailed
from jobserver.drill.tagged import processes_with

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "resnet50_pod"
JOB = "resnet50"
NODES, SLOTS = 3, 2
#: epochs completed -> workers
SCHEDULE = {0: 1, 1: 2, 3: 4, 4: 2}
#: kill one of two workers in the middle of this epoch; kill everything of the job in the middle of that one
KILL_ONE_IN, KILL_ALL_IN = 2, 6
WANTED_ACCURACY = 0.95
POLL_S = 0.25
MARK = "EDL_QUICKSTART"

RECIPE = {
    "--model": "resnet50",
    "--image_size": "32",
    "--augmentation": "shift_rotate",
    "--workers": "1",
    "--total_batch_size": "64",
    "--lr_schedule": "onecycle",
    "--lr": "0.03",
}

Json = dict[str, Any]


class Quickstart:
    """One run, from the images to the table."""

    def __init__(self, base: Path, epochs: int, console: Console) -> None:
        self.base = base
        self.epochs = epochs
        self.console = console
        self.began = time.monotonic()
        self.port = _free_port()
        self.mark = uuid.uuid4().hex
        self.environ = {**os.environ, MARK: self.mark, "EDL_KEY_FILE": str(base / "key"), "PYTHONUNBUFFERED": "1"}
        self.environ["EDL_SERVER"] = f"http://127.0.0.1:{self.port}"
        self.api = Api(self.environ["EDL_SERVER"], base / "key")
        self.events: list[Json] = []
        self._last_event = -1

    def say(self, text: str, style: str = "") -> None:
        self.console.print(
            f"[{time.monotonic() - self.began:6.1f} s] {text}", style=style, highlight=False, markup=False
        )

    def run(self, checkpoint_url: str) -> None:
        images = self.base / "digits"
        _checked([sys.executable, str(EXAMPLE / "make_digits.py"), str(images)], self.environ)
        self.say(f"wrote 1,797 images of digits to {images}; checkpoints go to {checkpoint_url}")
        with self._cluster():
            self._submit(images, checkpoint_url)
            self._follow_until(lambda job: self._in_middle_of(job, KILL_ONE_IN))
            self._kill(self._pids()[-1:], "one worker")
            self._follow_until(lambda job: self._in_middle_of(job, KILL_ALL_IN))
            self._kill([*self._pids(), *self._driver_pid()], "every process of the job")
            self._follow_until(lambda job: bool(job["phase"] in ("succeeded", "failed", "stopped")))
            job = self.api.get(f"/jobs/{JOB}")
            if job["phase"] != "succeeded":
                raise CommandFailed(f"the job {job['phase']}: {job['reason']}; logs: {self.base / 'logs'}")

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        """`edl up`, until the block ends."""
        command = [_edl(), "up", "--nodes", str(NODES), "--slots", str(SLOTS), "--server-port", str(self.port)]
        command += ["--zookeeper-port", "0"]  # no JobClient that somebody else runs here is to find it
        command += ["--data-dir", str(self.base / "edl"), "--log-dir", str(self.base / "logs")]
        self.say("$ " + " ".join(["edl", *command[1:5]]), "bold")
        environ = {name: value for name, value in self.environ.items() if name != "EDL_ZOOKEEPER"}
        up = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True, cwd=self.base)
        assert up.stdout is not None
        try:
            for line in up.stdout:
                self.say(line.rstrip())
                if line.startswith("ready"):
                    break
            else:
                raise CommandFailed(f"edl up ended with status {up.wait()}; logs: {self.base / 'edl' / 'logs'}")
            yield
        finally:
            up.send_signal(signal.SIGTERM)
            up.stdout.read()
            up.wait()
            up.stdout.close()

    def _submit(self, images: Path, checkpoint_url: str) -> None:
        schedule = ",".join(f"{epoch}:{np}" for epoch, np in SCHEDULE.items())
        command = ["submit", "--name", JOB, "--min-np", "1", "--max-np", "4", "--schedule", schedule]
        command += ["--checkpoint", checkpoint_url, "--", sys.executable, str(EXAMPLE / "train.py")]
        command += ["--data", str(images), "--epochs", str(self.epochs)]
        command += [word for option in RECIPE.items() for word in option]
        self.say("$ edl " + " ".join(command), "bold")
        _checked([_edl(), *command], self.environ)

    def _follow_until(self, reached: Callable[[Json], bool]) -> None:
        """Print what happens to the job until it has come that far, or has ended."""
        while True:
            job = self.api.get(f"/jobs/{JOB}")
            for event in self.api.get(f"/jobs/{JOB}/events", after=self._last_event)["events"]:
                self._last_event = event["number"]
                self.events.append(event)
                self.say(
                    event["text"], {"epoch": "green", "resize": "cyan", "resume": "magenta"}.get(event["kind"], "dim")
                )
            if reached(job) or job["phase"] in ("succeeded", "failed", "stopped"):
                return
            time.sleep(POLL_S)  # the API has no event stream to wait on

    def _in_middle_of(self, job: Json, epoch: int) -> bool:
        """The newest world trains in that epoch and has done a few steps of it."""
        progress, world = job["progress"], job["rendezvous"]
        if not progress or progress["epoch"] != epoch or progress["generation"] != world["generation"]:
            return False
        done = [e["fields"]["step"] for e in self.events if e["kind"] == "epoch" and e["fields"]["epoch"] == epoch - 1]
        return bool(done) and progress["step"] >= done[-1] + 6 and len(world["members"]) == job["workers"] == 2

    def _pids(self) -> list[int]:
        return [row["pid"] for row in self.api.get(f"/jobs/{JOB}")["worker_records"] if row["state"] == "running"]

    def _driver_pid(self) -> list[int]:
        driver = self.api.get(f"/jobs/{JOB}")["driver"]
        return [driver["pid"]] if driver else []

    def _kill(self, pids: list[int], what: str) -> None:
        self.say(f"$ kill -9 {' '.join(map(str, pids))}    ({what})", "bold red")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    # ---- the end --------------------------------------------------------------------------------------------------

    def result(self, setup_s: float) -> Json:
        epochs = {}
        for event in self.events:
            if event["kind"] == "epoch":  # an epoch that is trained again after a restart counts once
                names = ("epoch", "workers", "samples_per_s", "loss", "accuracy")
                epochs[event["fields"]["epoch"]] = {name: event["fields"].get(name) for name in names}
        resizes = [
            {name: event["fields"].get(name) for name in ("from", "to", "cause", "pause_s")}
            for event in self.events
            if event["kind"] == "resize" and event["fields"]["from"]
        ]
        resumed = [event["fields"]["epoch"] for event in self.events if event["kind"] == "resume"]
        return {
            "epochs": [epochs[epoch] for epoch in sorted(epochs)],
            "resizes": resizes,
            "resumed_from_epoch": resumed[-1] if resumed else None,
            "setup_s": setup_s,
            "job_s": round(time.monotonic() - self.began, 1),
        }

    def print_tables(self, result: Json) -> None:
        epochs = Table(box=None, header_style="bold")
        for name in ("epoch", "workers", "samples/s", "loss", "accuracy"):
            epochs.add_column(name, justify="right")
        for row in result["epochs"]:
            epochs.add_row(
                str(row["epoch"]), str(row["workers"]), f"{row['samples_per_s'] or 0:.0f}",
                f"{row['loss']:.3f}", f"{row['accuracy']:.3f}",
            )  # fmt: skip
        resizes = Table(box=None, header_style="bold")
        for name in ("workers", "pause (s)", "cause"):
            resizes.add_column(name, overflow="fold")
        for row in result["resizes"]:
            pause = "-" if row["pause_s"] is None else f"{row['pause_s']:.2f}"
            resizes.add_row(f"{row['from']} -> {row['to']}", pause, row["cause"])
        self.console.print(epochs, resizes, sep="\n")

    def problems(self, result: Json) -> list[str]:
        """What did not go as promised, and what is left running."""
        found = []
        accuracy = result["epochs"][-1]["accuracy"] if result["epochs"] else 0.0
        if accuracy < WANTED_ACCURACY:
            found.append(f"the held-out accuracy is {accuracy:.3f}, wanted {WANTED_ACCURACY}")
        if [row["epoch"] for row in result["epochs"]] != list(range(self.epochs)):
            found.append("not every epoch was completed")
        if result["resumed_from_epoch"] != KILL_ALL_IN:
            found.append(f"resumed from epoch {result['resumed_from_epoch']}, expected {KILL_ALL_IN}")
        for process in processes_with(MARK, lambda mark: mark == self.mark):
            found.append(f"process {process.pid} is left running")
        return found


def _checked(command: list[str], environ: dict[str, str]) -> None:
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandFailed(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()}")


def _edl() -> str:
    return str(Path(sys.executable).with_name("edl"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart.sh",
        description="Train ResNet-50 on 1,797 real images with workers that come and go: 1 -> 2 -> 4 -> 2 by a "
        "schedule, one killed in the middle of an epoch, then all of them, and the job resumes from its checkpoint.",
    )
    parser.add_argument("--hdfs", action="store_true", help="keep the checkpoints on a real HDFS, started for the run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write epochs, resizes and seconds there as JSON")
    parser.add_argument("--epochs", type=int, default=9, help="epochs to train, at least 8 (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep images, checkpoints and logs in this new folder")
    parser.add_argument("--setup_s", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.epochs <= KILL_ALL_IN + 1:
        parser.error(f"--epochs {args.epochs} ends before the story does: give at least {KILL_ALL_IN + 2}")
    if args.keep is not None and args.keep.exists():
        parser.error(f"--keep {args.keep} exists already: the run starts from nothing, so give a new folder")
    return args


def main() -> int:
    args = _arguments()
    console = Console(soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        if args.keep is None:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edl-quickstart-")))
        else:
            base = args.keep.absolute()
            base.mkdir(parents=True)
        quickstart = Quickstart(base, args.epochs, console)
        try:
            url = f"file://{base}/checkpoints"
            if args.hdfs:
                quickstart.say("starting a NameNode and two DataNodes")
                url = stack.enter_context(LocalHdfs(base / "hdfs")).url + "/checkpoints"
            quickstart.run(url)
        except CommandFailed as error:
            console.print(f"quickstart: {error.message}", style="red", markup=False)
            return 1
        except KeyboardInterrupt:
            console.print("quickstart: stopped")
            return 130
        result = quickstart.result(args.setup_s)
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
        quickstart.print_tables(result)
        problems = quickstart.problems(result)
    for problem in problems:
        console.print(f"quickstart: {problem}", style="red", markup=False)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
