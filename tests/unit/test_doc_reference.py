"""The pages of reference are complete: every variable, every public name, every page in the navigation's reach."""

import re

import doc_variables
from doc_blocks import ROOT
from docsite.markup import cell, table
from docsite.mounts import MOUNTS, for_site

import checkpoints
import edl_collective


def test_every_variable_that_the_code_reads_is_explained() -> None:
    assert doc_variables.in_code() - doc_variables.on_page() == set()


def test_no_variable_is_explained_that_nobody_reads() -> None:
    assert doc_variables.on_page() - doc_variables.in_code() == set()


def test_the_look_at_the_code_finds_variables() -> None:
    found = doc_variables.in_code()
    assert {"EDL_SERVER", "EDL_ZOOKEEPER_JAR", "EDL_DISTILL_NOP", "EDL_TEACHER_PORT", "EDL_LOAD_CEILING"} <= found


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    for package in (edl_collective, checkpoints):
        errors = f"{package.__name__}.errors"
        for name in package.__all__:
            home = f"{package.__name__}.{package._HOME[name]}"
            assert home == errors or f"{home}.{name}" in shown or f"`{package.__name__}.{name}`" in text, name
        assert errors in shown


def test_links_lead_to_the_same_page_on_the_site() -> None:
    def turned(markdown: str, source: str) -> str:
        return for_site(markdown, source, lambda path: (ROOT / path).exists()).rstrip("\n")

    assert (
        turned("[a](docs/page.md#jobs) ![b](docs/images/x.png)", "README.md") == "[a](page.md#jobs) ![b](images/x.png)"
    )
    assert turned("[a](../examples/resnet50_pod/README.md)", "docs/start.md") == "[a](examples/resnet50_pod.md)"
    assert turned("[a](../scheduling.md)", "docs/decisions/020-several-jobs.md") == "[a](../scheduling.md)"
    assert turned("[all](docs/decisions/)", "README.md") == "[all](decisions/index.md)"
    assert turned("[LICENSE](LICENSE)", "README.md") == "`LICENSE`"
    assert turned("[an example](losses.toml)", "examples/distill_digits/README.md") == (
        "an example (`examples/distill_digits/losses.toml`)"
    )
    assert (
        turned("[a](nosuch.md) [b](https://x/y.md) [c](#d)", "docs/a.md")
        == "[a](nosuch.md) [b](https://x/y.md) [c](#d)"
    )
    assert turned("```\n[a](docs/page.md)\n```", "README.md") == "```\n[a](docs/page.md)\n```"


def test_lists_and_tables_get_the_line_that_python_markdown_needs() -> None:
    assert for_site("text:\n- a\n  more\n- b\ntext\n", "docs/a.md", bool) == "text:\n\n- a\n  more\n- b\ntext\n"
    assert for_site("| `a\\|b` c\\|d |\n", "docs/a.md", bool) == "| `a|b` c\\|d |\n"
    assert for_site("text\n| a |\n|---|\n| b |\n", "docs/a.md", bool) == "text\n\n| a |\n|---|\n| b |\n"


def test_what_is_mounted_exists() -> None:
    assert [path for path in MOUNTS if not (ROOT / path).exists()] == []


def test_text_in_tables_stays_text() -> None:
    assert table(("a",), [(cell("x|y <z> *"),)]) == "| a |\n| --- |\n| x\\|y &lt;z&gt; \\* |"
