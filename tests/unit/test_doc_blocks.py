"""Every block of code on every page is in a category, and reads as the programs would read it."""

import configparser
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import doc_python
import doc_shell
import doc_variables
import pytest
import yaml
from doc_blocks import ROOT, Block, blocks_of, pages, spans_of

from jobclient.config import OPTIONS as CLIENT_OPTIONS
from jobserver.config import OPTIONS as SERVER_OPTIONS

#: these need a mark, since some can be run
MARKED = ("sh", "python", "diff")
VARIABLES = doc_variables.on_page()


def check_shell(block: Block) -> None:
    folder = ROOT / block.page if block.page.startswith("examples/") else ROOT / "README.md"
    variables = doc_shell.check_shell(block.text, folder.parent)
    unknown = [name for name in variables if "EDL" in name and name not in VARIABLES]
    assert not unknown, f"{block} sets {unknown}, which docs/reference/configuration.md does not know"


def check_toml(block: Block) -> None:
    found = tomllib.loads(block.text)
    programs = {"jobclient.toml": CLIENT_OPTIONS, "jobserver.toml": SERVER_OPTIONS}
    for name, options in programs.items():
        if name in block.text.partition("\n")[0]:
            assert found.keys() <= options.keys(), f"{block}: {found.keys() - options.keys()}"


def check_ini(block: Block) -> None:
    configparser.ConfigParser().read_string(block.text)


CHECKS: dict[str, Callable[[Block], object]] = {
    "sh": check_shell,
    "python": lambda block: doc_python.check_python(block.text),
    "diff": lambda block: re.fullmatch(r"([-+ ].*\n)+", block.text) or pytest.fail(f"{block} is no diff"),
    "toml": check_toml,
    "json": lambda block: json.loads(block.text),
    "yaml": lambda block: list(yaml.safe_load_all(block.text)),
    "ini": check_ini,
    "text": lambda block: None,
}


def check(block: Block) -> None:
    assert block.language, f"{block} is indented or names no language: fence it, as one of {', '.join(CHECKS)}"
    assert block.language in CHECKS, f"{block}: nobody checks {block.language}"
    if block.language in MARKED:
        assert block.how, f"{block}: say <!-- run --> or <!-- parse: why it is not run --> on the line above"
    if block.how == "parse":
        assert block.note, f"{block}: say why it is not run"
        missing = [
            path for path in re.findall(r"\b(?:tests|scripts)/[\w/]+\.\w+", block.note) if not (ROOT / path).exists()
        ]
        assert not missing, f"{block} says that {missing} runs it"
    try:
        CHECKS[block.language](block)
    except (ValueError, SyntaxError, ImportError, configparser.Error, yaml.YAMLError) as error:
        pytest.fail(f"{block}: {error}")


@pytest.mark.parametrize("page", pages())
def test_blocks(page: str) -> None:
    for block in blocks_of(page):
        check(block)


@pytest.mark.parametrize("page", pages())
def test_commands_in_sentences(page: str) -> None:
    for line, text in spans_of(page):
        if text.startswith("edl ") and page != "CHANGELOG.md":
            try:
                doc_shell.check_mentioned(shlex.split(text)[1:])
            except ValueError as error:
                pytest.fail(f"{page}:{line}: {error}")


def block(text: str, language: str = "sh", mark: str = "<!-- parse: a test -->") -> Block:
    (found,) = blocks_of("README.md", f"{mark}\n```{language}\n{text}\n```\n")
    return found


def test_marks() -> None:
    found = blocks_of("p.md", "text\n<!-- run: save a.py -->\n```python\n1\n```\n\n```sh\nls\n```\n\n    indented\n")
    assert [(b.language, b.how, b.note) for b in found] == [
        ("python", "run", "save a.py"),
        ("sh", "", ""),
        ("", "", ""),
    ]
    assert str(found[0]) == "p.md:3"


@pytest.mark.parametrize(
    "wrong",
    [
        block("edl ps --nosuch"),
        block("edl nosuch"),
        block("edl scale a"),
        block("edl ps && edl teacher nosuch"),
        block('echo "$(edl nosuch)"'),
        block("edl ckpt verify /x --jobs many"),
        block("EDL_NOSUCH=1 edl ps"),
        block("python -m jobserver --nosuch 1"),
        block("python -m jobclient --slots none"),
        block("python nosuch.py"),
        block("scripts/nosuch.sh"),
        block("scripts/bench.sh resize --nosuch"),
        block("cd nosuch"),
        block("install -m 0644 deploy/nosuch/*.service /etc"),
        block("nosuch"),
        block("echo 'a"),
        block("curl http://server:8180/api/v1/nosuch"),
        block("horovodrun -np 2 --host-discovery-script scripts/nosuch.sh python train.py"),
        block("edl ps", mark=""),
        block("edl ps", mark="<!-- parse -->"),
        block("edl ps", mark="<!-- parse: tests/nosuch.py runs it -->"),
        block("x", language="nosuch"),
        block("x =", language="python"),
        block("import nosuch", language="python"),
        block("from checkpoints import nosuch", language="python"),
        block("import edl_collective as edl\nedl.nosuch()", language="python"),
        block("import edl_collective as edl\nedl.State(nosuch=1)", language="python"),
        block("print(nosuch)", language="python"),
        block("[a]\nx", language="toml"),
        block("# /etc/edl/jobclient.toml\nnosuch = 1", language="toml"),
        block("{", language="json"),
        block("a: [", language="yaml"),
        block("x", language="ini"),
        block("?x", language="diff"),
    ],
    ids=lambda found: f"{found.language}-{found.text.strip()[:40]}",
)
def test_what_is_wrong_is_found(wrong: Block) -> None:
    with pytest.raises((pytest.fail.Exception, AssertionError)):
        check(wrong)


@pytest.mark.parametrize("wrong", ["nosuch", "ps --nosuch", "teacher nosuch", "ckpt gc --nosuch 3"])
def test_what_is_wrong_in_a_sentence_is_found(wrong: str) -> None:
    with pytest.raises(doc_shell.Wrong):
        doc_shell.check_mentioned(wrong.split())


def test_pages_are_found() -> None:
    assert {"README.md", "docs/start.md", "docs/reference/http.md", "examples/resnet50_pod/README.md"} <= set(pages())
    assert all(Path(ROOT / page).is_file() for page in pages())
