"""A skipped test is a failure under --no-skips and under CI=true, and only there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLANTED = {
    "test_call.py": "import pytest\ndef test_it():\n    pytest.skip('no such disk')\n",
    "test_module.py": "import pytest\npytest.skip('no such disk', allow_module_level=True)\n",
    "test_mark.py": "import pytest\n@pytest.mark.skip(reason='no such disk')\ndef test_it(): pass\n",
    "test_expected.py": "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_it(): assert False\n",
    "test_good.py": "def test_it(): pass\n",
}


@pytest.mark.parametrize(
    ("arguments", "ci", "refused"),
    [(["--no-skips"], "", 3), ([], "true", 3), ([], "", 0)],
    ids=["--no-skips", "CI=true", "elsewhere"],
)
def test_skips_are_failures_where_asked(tmp_path: Path, arguments: list[str], ci: str, refused: int) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    for name, text in PLANTED.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    pytest_command = [sys.executable, "-m", "pytest", "--rootdir", str(tmp_path)]
    command = [*pytest_command, "--continue-on-collection-errors", *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests:{ROOT}/scripts", "CI": ci}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == (1 if refused else 0)
    outcomes = {name: int(count) for count, name in re.findall(r"(\d+) (\w+)", result.stdout.splitlines()[-1])}
    assert sum(outcomes.get(name, 0) for name in ("failed", "error", "errors")) == refused
    assert ("no such disk (a skip is a failure here" in result.stdout) == (refused > 0)
    assert outcomes.get("skipped", 0) == 3 - refused
    assert (outcomes["passed"], outcomes["xfailed"]) == (1, 1)
