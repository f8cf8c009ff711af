"""Service distillation with an elastic student, live: a teacher job answers a student that grows from 1 to 2 workers.

Writes digits as images, trains a teacher, starts a private ZooKeeper, a JobServer and a node with `edl up`, submits
the teacher as a job of kind teacher and the student with --distill_service, and prints a table of the student's epochs.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobserver.cli.client import Api, CommandFailed

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
SIZE, CLASSES = 32, 10
STUDENT, SERVICE = "student", "digits-teacher"
#: the student has a second worker after so many epochs
GROWS_AFTER = 2
POLL_S = 0.25
TEACHER = ["--model", "tiny", "--image_size", str(SIZE), "--augmentation", "shift_rotate", "--workers", "1"]
TEACHER += ["--total_batch_size", "64", "--lr", "0.1", "--lr_schedule", "onecycle"]
ENDED = ("succeeded", "failed", "stopped")

Json = dict[str, Any]


def serve_command(checkpoint: str, threads: int = 1) -> list[str]:
    """What serves a model of models.py from a checkpoint of train.py; to be run in this folder."""
    arguments = json.dumps({"name": "tiny", "classes": CLASSES})
    command = [sys.executable, "-m", "distill.teacher_server", "--model", "models:build_model"]
    command += ["--model-args", arguments, "--checkpoint", checkpoint, "--input", f"image:uint8:3,{SIZE},{SIZE}"]
    command += ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--classes", str(CLASSES)]
    return [*command, "--threads", str(threads)]


class Story:
    """One run; everything of it lies in `base`."""

    def __init__(self, base: Path, args: argparse.Namespace, console: Console) -> None:
        self.base, self.args, self.console = base, args, console
        self.began_s = time.monotonic()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        kept = {name: value for name, value in os.environ.items() if "EDL_" not in name}
        self.environ = {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        self.environ |= {"EDL_KEY_FILE": str(base / "key"), "EDL_SERVER": f"http://127.0.0.1:{self.port}"}
        self.api = Api(self.environ["EDL_SERVER"], base / "key")
        self.events: list[Json] = []
        self.last_event = -1

    def say(self, text: str, style: str = "") -> None:
        took_s = time.monotonic() - self.began_s
        self.console.print(f"[{took_s:6.1f} s] {text}", style=style, highlight=False, markup=False)

    def run(self) -> None:
        """From the images to the end of the student. Raises CommandFailed."""
        images, teacher = self.base / "digits", f"file://{self.base}/teacher"
        self._check([sys.executable, str(FOLDER / "make_digits.py"), str(images), "--size", str(SIZE)])
        self.say(f"the teacher learns for {self.args.teacher_epochs} epochs, alone")
        command = [sys.executable, str(FOLDER / "train.py"), "--data", str(images), "--checkpoint", teacher, *TEACHER]
        done = self._check([*command, "--epochs", str(self.args.teacher_epochs)])
        self.say(next((line for line in reversed(done.splitlines()) if line.startswith("epoch")), done[-200:]), "green")
        with self._cluster():
            self._edl(["submit", "--service", SERVICE, "--np", "1", "--work-dir", str(FOLDER)], serve_command(teacher))
            schedule = f"0:1,{GROWS_AFTER}:2"
            options = ["submit", "--name", STUDENT, "--min-np", "1", "--max-np", "2", "--schedule", schedule]
            options += ["--checkpoint", f"file://{self.base}/student"]
            student = [sys.executable, str(FOLDER / "train.py"), "--data", str(images), *TEACHER]
            student += ["--epochs", str(self.args.epochs), "--use_distill_service", "True"]
            self._edl(options, [*student, "--distill_service", SERVICE])
            self._follow()

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        """`edl up`, until the block ends."""
        command = [sys.executable, "-m", "jobserver.cli.main", "up", "--nodes", "1", "--slots", "3"]
        command += ["--server-port", str(self.port), "--zookeeper-port", "0"]
        command += ["--data-dir", str(self.base / "edl"), "--log-dir", str(self.base / "logs")]
        self.say("$ edl up --nodes 1 --slots 3", "bold")
        with subprocess.Popen(command, env=self.environ, stdout=subprocess.PIPE, text=True, cwd=self.base) as up:
            assert up.stdout is not None
            try:
                if not any(line.startswith("ready") for line in up.stdout):
                    raise CommandFailed(f"edl up ended with status {up.wait()}; logs: {self.base / 'edl' / 'logs'}")
                yield
            finally:
                up.send_signal(signal.SIGTERM)
                up.stdout.read()

    def _edl(self, options: list[str], command: list[str]) -> None:
        self.say("$ edl " + " ".join(options) + " -- " + " ".join(["python", *command[1:]]), "bold")
        self._check([sys.executable, "-m", "jobserver.cli.main", *options, "--", *command])

    def _check(self, command: list[str]) -> str:
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandFailed(f"{command[:4]} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout + done.stderr

    def _follow(self) -> None:
        """Print what happens to the student until it has ended. Raises CommandFailed unless it succeeded."""
        while True:
            job = self.api.get(f"/jobs/{STUDENT}")
            for event in self.api.get(f"/jobs/{STUDENT}/events", after=self.last_event)["events"]:
                self.last_event = event["number"]
                self.events.append(event)
                self.say(event["text"], {"epoch": "green", "resize": "cyan"}.get(event["kind"], "dim"))
            if job["phase"] in ENDED:
                break
            time.sleep(POLL_S)  # the API has no event stream to wait on
        if job["phase"] != "succeeded":
            raise CommandFailed(f"the student {job['phase']}: {job['reason']}; logs: {self.base / 'logs'}")

    # ---- the end --------------------------------------------------------------------------------------------------

    def result(self) -> Json:
        """The student's epochs and resizes, as its events tell them."""
        names = ("epoch", "workers", "samples_per_s", "loss", "accuracy", "distill_soft")
        epochs = [{n: e["fields"].get(n) for n in names} for e in self.events if e["kind"] == "epoch"]
        resizes = [e["fields"] for e in self.events if e["kind"] == "resize" and e["fields"].get("from")]
        kept = [{n: fields.get(n) for n in ("from", "to", "pause_s")} for fields in resizes]
        return {"epochs": epochs, "resizes": kept, "seconds": round(time.monotonic() - self.began_s, 1)}

    def print_table(self, result: Json) -> None:
        table = Table(box=None, header_style="bold")
        for name in ("epoch", "workers", "samples/s", "loss", "accuracy"):
            table.add_column(name, justify="right")
        for row in result["epochs"]:
            numbers = (f"{row['samples_per_s'] or 0:.0f}", f"{row['loss']:.3f}", f"{row['accuracy'] or 0:.3f}")
            table.add_row(str(row["epoch"]), str(row["workers"]), *numbers)
        self.console.print(table)
        for row in result["resizes"]:
            self.console.print(f"{row['from']} -> {row['to']} workers, pause {row['pause_s'] or 0:.2f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="distill.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=16, help="of the student, at least 3 (default: %(default)s)")
    parser.add_argument("--teacher_epochs", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write epochs and resizes there")
    args = parser.parse_args()
    if args.epochs <= GROWS_AFTER:
        parser.error(f"--epochs {args.epochs} ends before the student grows: give at least {GROWS_AFTER + 1}")
    if args.teacher_epochs < 1:
        parser.error("--teacher_epochs must be at least 1")
    return args


def main() -> int:
    """Run the story; exit code 1 with one line when a part of it fails, 130 on Ctrl-C."""
    args = _arguments()
    console = Console(soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="edl-distill-") as base:
        story = Story(Path(base), args, console)
        try:
            story.run()
        except CommandFailed as error:
            console.print(f"distill.sh: {error.message}", style="red", markup=False)
            return 1
        except KeyboardInterrupt:
            console.print("distill.sh: stopped")
            return 130
        result = story.result()
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    story.print_table(result)
    if not result["resizes"]:
        console.print("distill.sh: the student ended before its second worker came: give more --epochs", style="red")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
