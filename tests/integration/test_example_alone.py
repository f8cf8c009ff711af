"""The example's script as a person starts it: alone, on real images, resumed, and told of unusable ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import make_digits

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "resnet50_pod" / "train.py"
RECIPE = (
    "--model tiny --image_size 16 --augmentation shift_rotate --total_batch_size 64 --lr 0.1 --lr_schedule onecycle"
)


def run_script(folder: Path, *argv: str) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if "EDL" not in name}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SCRIPT), "--data", str(folder / "digits"), *RECIPE.split(), *argv]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("alone")
    make_digits.write_digits(root / "digits", size=16, share=0.2)
    return root


def epochs_in(output: str) -> list[int]:
    return [int(line.split()[1].rstrip(":")) for line in output.splitlines() if line.startswith("epoch ")]


def last_accuracy(output: str) -> float:
    return float(output.rsplit("accuracy ", 1)[1].split(",")[0])


def test_the_script_learns_the_digits_and_resumes_at_the_next_epoch(folder: Path) -> None:
    first = run_script(folder, "--checkpoint", "ck", "--epochs", "3")
    assert first.returncode == 0, first.stderr
    assert epochs_in(first.stderr) == [0, 1, 2]
    assert last_accuracy(first.stderr) > 0.85
    second = run_script(folder, "--checkpoint", "ck", "--epochs", "4", "--workers", "0")
    assert second.returncode == 0, second.stderr
    assert epochs_in(second.stderr) == [3]
    assert last_accuracy(second.stderr) > 0.85


def test_an_unreadable_image_ends_the_script_with_one_line_that_names_it(folder: Path) -> None:
    broken = folder / "broken" / "digits"
    make_digits.write_digits(broken, size=16, share=0.2)
    victim = next((broken / "train").rglob("*.jpg"))
    victim.write_bytes(b"no image")
    done = run_script(broken.parent, "--epochs", "1")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"train.py: cannot decode {victim}: ")
