"""A skipped test is a failure under --no-skips and under CI=true, and only there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SKIPPING_CALL = "import pytest\ndef test_it():\n    pytest.skip('no such disk')\n"
SKIPPING_MODULE = "import pytest\npytest.skip('no such disk', allow_module_level=True)\n"
SKIPPING_MARK = "import pytest\n@pytest.mark.skip(reason='no such disk')\ndef test_it(): pass\n"
EXPECTED_FAILURE = "import pytest\n@pytest.mark.xfail(reason='no such disk')\ndef test_it(): assert False\n"


def run_pytest(folder: Path, text: str, *arguments: str, ci: str = "") -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "test_planted.py").write_text("def test_other(): pass\n" + text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CI": ci}
    command = [sys.executable, "-m", "pytest", "--rootdir", str(folder), "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("text", [SKIPPING_CALL, SKIPPING_MODULE, SKIPPING_MARK])
@pytest.mark.parametrize(("arguments", "ci"), [(["--no-skips"], ""), ([], "true")])
def test_a_skip_fails_where_it_must_not_be(tmp_path: Path, text: str, arguments: list[str], ci: str) -> None:
    result = run_pytest(tmp_path, text, *arguments, ci=ci)
    assert result.returncode != 0
    assert "no such disk (a skip is a failure here" in result.stdout


@pytest.mark.parametrize("text", [SKIPPING_CALL, SKIPPING_MARK])
def test_a_skip_is_allowed_elsewhere(tmp_path: Path, text: str) -> None:
    assert run_pytest(tmp_path, text).returncode == 0


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    assert run_pytest(tmp_path, EXPECTED_FAILURE, "--no-skips").returncode == 0
