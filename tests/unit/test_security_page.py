"""docs/security.md lists what was attacked, each with a test that there is."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def named() -> list[tuple[str, str]]:
    """File and function of each test that the page names; a name alone is of the file before it, "" of all of it."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    found, file = [], ""
    for new, function in re.findall(r"`(test_\w+\.py)?(?:::(\w+))?`", text):
        file = new or file
        if new or function:
            found.append((file, function))
    return found


def test_each_attack_has_the_test_that_the_page_names() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*/test_*.py")}
    rows = named()
    assert len(rows) >= 25
    missing = [(file, name) for file, name in rows if not re.search(rf"def {name}\b", sources.get(file, ""))]
    assert missing == []
    assert [file for file, _ in rows if file not in sources] == []
