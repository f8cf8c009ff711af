"""The files of the page: served to everybody, from the package alone, under a policy that keeps them to themselves."""

import re
from pathlib import Path

import pytest
from api_server import Server

import jobserver.page
from jobserver.api_page import FILE_TYPES

FOLDER = Path(jobserver.page.__file__).parent
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in FILE_TYPES)
SCRIPTS = [path for path in FILES if path.suffix == ".js"]


@pytest.fixture(autouse=True)
def _without_token(server: Server) -> None:
    del server.http.headers["Authorization"]


@pytest.mark.parametrize("path", ["/", *(f"/page/{path.name}" for path in FILES)])
def test_everybody_gets_the_files_and_only_once(server: Server, path: str) -> None:
    answer = server.http.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = server.http.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/__init__.py",
        "/page/..%2fapi.py",
        "/page/%2e%2e/api.py",
        "/page/x/y.js",
        "/page/%00",
        "/page//etc/passwd",
    ],
)
def test_no_other_file_is_served(server: Server, path: str) -> None:
    answer = server.http.get(f"/page/{path}")
    assert answer.status_code in (401, 404)
    assert "import" not in answer.text


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        outside = [
            found for found in re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"'`]*""", text) if "www.w3.org" not in found
        ]
        assert outside == [], path.name
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)", index) == []
    assert re.findall(r"\sstyle=|\son\w+=", index) == []


def test_no_script_makes_markup_or_code_of_strings_or_remembers_a_token_for_long() -> None:
    forbidden = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "localStorage",
    )
    found = [(path.name, word) for path in SCRIPTS for word in forbidden if word in path.read_text(encoding="utf-8")]
    assert found == []


def test_every_import_is_there_and_files_stay_short() -> None:
    names = {path.name for path in FILES}
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= names
        assert text.startswith("// "), f"{path.name} says what it is for"
    assert [path.name for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) >= 400] == []
