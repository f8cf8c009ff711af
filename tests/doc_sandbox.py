"""Where the commands of the documentation run as printed: a cluster, and a folder for each page.

What a page names and this machine has not (an HDFS, S3, /data, /tmp) is a folder of the sandbox. `edl up` and
`edl drill` do nothing here, since the cluster is there and their own tests run them; commands that follow without end
(`-f`, `top`) are let go when they have said something; `edl delete` waits for the end of the job, as a person would.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cluster import ROOT, TINY_JOB, Cluster
from doc_blocks import Block

from distill.records import TeacherRecord
from edl_collective.coord.paths import Paths
from edl_collective.coord.records import encode
from edl_collective.coord.zk_store import ZkStore

NODE = "n1"
#: of a block; a page has twenty commands, each of which starts a Python, and a machine may be busy
TIMEOUT_S = 300.0
#: of a job, to train or to end
JOB_TIMEOUT_S = 120.0
ENDED = ("succeeded", "failed", "stopped")
_EDL = """\
#!/bin/bash
follow() {{
  # until it has said something, which a worker that has just been planned has not
  local end=$((SECONDS + 120)) said line
  while ((SECONDS < end)); do
    exec 3< <(exec "$@")
    said=$!
    if IFS= read -r -t 120 line <&3; then
      echo "$line"
      kill "$said" 2>/dev/null || true  # not INT, which a shell lets its background ignore
      wait "$said" || true
      exit 0
    fi
    wait "$said" || true
    sleep 0.2
  done
  exit 1
}}
edl=({python} -m jobserver.cli.main)
case "$1 $2" in
  up\\ * | drill\\ *) exit 0 ;;
  top\\ * | teacher\\ top) follow "${{edl[@]}}" "$@" ;;
  delete\\ *)
    for _ in $(seq 300); do
      "${{edl[@]}}" describe "$2" --json | grep -qE '"phase": "(succeeded|failed|stopped)"' && break
      sleep 0.1
    done ;;
esac
[[ " $* " == *" -f "* ]] && follow "${{edl[@]}}" "$@"
exec "${{edl[@]}}" "$@"
"""
#: what this machine has not, all in one expression, so that nothing is replaced twice
_PLACES = re.compile(
    r"\bhdfs://[^/\s]+(?P<hdfs>/[^\s'\"?]*)(?:\?[^\s'\"]*)?|\b(?P<s3>s3)://|(?P<scheme>file://|(?<=\s))/(?P<top>data|tmp)/"
)
_TRAIN = """\
import runpy, sys
print("training", flush=True)
sys.argv = ["train.py", "--epochs", "1000000", "--samples", "200", "--step_s", "0.02"]
runpy.run_path({job!r}, run_name="__main__")
"""


class Sandbox:
    """One cluster with a node of two slots and a teacher that is listed; `enter` and `leave` stand around a page."""

    def __init__(self, base: Path) -> None:
        self.base = base
        (base / "bin").mkdir()
        program = base / "bin" / "edl"
        program.write_text(_EDL.format(python=sys.executable))
        program.chmod(0o755)
        path = f"{base / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        modules = f"{ROOT}:{TINY_JOB.parent}"
        environ = {"PATH": path, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1", "BROWSER": "true"}
        self.cluster = Cluster(base, environ=environ)
        self.folder = base

    def start(self) -> "Sandbox":
        self.cluster.start().add_node(NODE, slots=2)
        store = ZkStore(self.cluster.environ["EDL_ZOOKEEPER"]).start()
        record = TeacherRecord(teacher="t1", url="http://127.0.0.1:9", model="resnet", rate=100.0)
        store.create(Paths().teacher("resnet", "t1"), encode(record))
        store.close()
        return self

    def enter(self, name: str) -> None:
        """A new folder, with a `train.py` of the reader's, and the scripts and deployment files of the repository."""
        self.folder = self.base / name
        self.folder.mkdir()
        (self.folder / "train.py").write_text(_TRAIN.format(job=str(TINY_JOB)))
        for shared in ("scripts", "deploy"):
            (self.folder / shared).symlink_to(ROOT / shared)

    def leave(self) -> None:
        """Stop and forget what the page began."""
        jobs = [job["job"] for job in self.cluster.get("/jobs")["jobs"]]
        for job in jobs:
            if self.cluster.job(job)["phase"] not in ENDED:
                self.cluster.post(f"/jobs/{job}/stop")
        for job in jobs:
            self._await_end(job)
            self.cluster.delete(f"/jobs/{job}")
        (node,) = self.cluster.get("/nodes")["nodes"]
        for is_so, order in (("cordoned", "uncordon"), ("draining", "undrain")):
            if node[is_so]:
                self.cluster.post(f"/nodes/{NODE}/{order}")
        shutil.rmtree(self.folder)

    def save(self, name: str, script: str) -> None:
        """Write a script of a page, without the seconds that each start of it would spend on torch's compiler."""
        (self.folder / name).write_text(f"import no_compiler\n{script}")

    def _await_end(self, job: str) -> None:
        self.cluster.wait(lambda: self.cluster.job(job)["phase"] in ENDED, JOB_TIMEOUT_S, f"{job} has ended", job)

    def here(self, text: str) -> str:
        """The text with the places of this sandbox."""
        text = _PLACES.sub(self._place, text)
        text = text.replace("zk:2181", self.cluster.environ["EDL_ZOOKEEPER"]).replace("NODE", NODE)
        return text.replace("horovodrun ", "horovodrun --network-interfaces lo ")

    def _place(self, found: re.Match[str]) -> str:
        if found["hdfs"]:
            return f"file://{self.folder}/hdfs{found['hdfs']}"
        return f"file://{self.folder}/s3/" if found["s3"] else f"{found['scheme']}{self.folder}/{found['top']}/"

    def run(self, block: Block) -> str:
        """Do with a block what its mark says; what it printed. Raises AssertionError."""
        verb, _, rest = block.note.partition(" ")
        text = self.here(block.text)
        if verb == "save":
            self.save(rest, text)
            return ""
        if block.language == "python":
            script = f"from doc_names import *\n{text}"
            (self.folder / "block.py").write_text(script)
            return self.shell("python block.py", str(block))
        said = self.shell(text, str(block))
        if verb == "wait":
            job, workers = rest.split()
            self.cluster.wait_for_world(job, int(workers), JOB_TIMEOUT_S)
        return said

    def shell(self, commands: str, what: str = "the commands") -> str:
        """Run commands in the folder; what they printed. Raises AssertionError with all of it."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            env=self.cluster.environ,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, f"{what} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def close(self) -> None:
        self.cluster.close()
