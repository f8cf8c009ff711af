"""The distillation examples as a person starts them, with real teacher servers, and nothing left behind."""

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

import make_digits
from distill.teacher.local import LocalTeacherFailed, LocalTeachers
from jobserver.drill.tagged import processes_with

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "distill_digits"
RESNET = ROOT / "examples" / "resnet50_pod"
TAG = "EDL_TEST_TAG"
#: distill.sh passes on nothing that begins with EDL_
STORY_TAG = "DISTILL_STORY_TAG"


def run_script(script: Path, *argv: str, cwd: Path, tag: str = "none") -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if "EDL" not in name}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", TAG: tag}
    command = [sys.executable, str(script), *argv]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=100, check=False)


def test_digits_are_learned_in_all_three_modes(tmp_path: Path) -> None:
    tag, file = uuid.uuid4().hex, tmp_path / "digits.json"
    short = "--seeds 1 --teachers 1 --teacher_epochs 2 --images 64 --epochs 4 --batch_size 16 --lr 0.02 --workers 0"
    done = run_script(DIGITS / "run.py", *short.split(), "--json", str(file), cwd=tmp_path, tag=tag)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    plain, within, service = found["students"]
    assert [plain["mode"], within["mode"], service["mode"]] == ["plain", "in-process", "service"]
    assert set(plain["losses"]) == {"hard"}
    # The same images, order and first weights, and the same answers but for their rounding to half precision.
    assert service["losses"] == pytest.approx(within["losses"], rel=2e-2)
    assert abs(service["accuracy"] - within["accuracy"]) < 0.02
    assert found["teacher_accuracy"] > 0.5
    assert "service - plain" in done.stdout
    assert not list(processes_with(TAG, lambda value: value == tag)), "servers and readers are gone"


def test_resnet_s_script_learns_from_teachers_that_it_is_told_of(tmp_path: Path) -> None:
    make_digits.write_digits(tmp_path / "digits", size=8, share=0.2)
    arguments = json.dumps({"name": "tiny", "classes": 10})
    serve = ["--model", "models:build_model", "--model-args", arguments, "--input", "image:uint8:3,8,8"]
    serve += ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--threads", "1"]
    recipe = "--model tiny --image_size 8 --augmentation shift_rotate --total_batch_size 64 --lr 0.1 --epochs 1"
    with LocalTeachers(*serve, folder=RESNET) as teachers:
        student = ["--data", "digits", *recipe.split(), "--distill_teachers", teachers.addresses]
        done = run_script(RESNET / "train.py", *student, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert re.search(r"^epoch 0: .*distill_soft 2\.", done.stderr, re.MULTILINE), done.stderr
        with urlopen(f"{teachers.urls[0]}/v2/models/{teachers.model}/stats") as answer:
            stats = json.load(answer)
        assert stats["model_stats"][0]["inference_count"] >= 1438, "every image was asked about"


@pytest.mark.long
@pytest.mark.timeout(400)
def test_an_elastic_student_learns_from_a_job_of_teachers(tmp_path: Path) -> None:
    """distill.sh as a person starts it, with as little training as shows it."""
    tag, file = uuid.uuid4().hex, tmp_path / "result.json"
    env = {name: value for name, value in os.environ.items() if "EDL" not in name}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", STORY_TAG: tag}
    command = [str(RESNET / "distill.sh"), "--epochs", "14", "--teacher_epochs", "1", "--json", str(file)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=360, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    assert [row["epoch"] for row in found["epochs"]] == list(range(14))
    assert all(row["distill_soft"] is not None for row in found["epochs"])
    assert [(row["from"], row["to"]) for row in found["resizes"]] == [(1, 2)]
    assert not list(processes_with(STORY_TAG, lambda value: value == tag)), "nothing is left behind"


def test_a_teacher_that_cannot_start_says_why() -> None:
    with pytest.raises(LocalTeacherFailed, match="nets:nothing"), LocalTeachers("--model", "nets:nothing"):
        pass
