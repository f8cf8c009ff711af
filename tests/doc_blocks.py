"""The blocks of code in the documentation, and what their marks say is to be done with them.

A block is fenced and names its language. On the line above it may stand `<!-- run -->` (tests/e2e/test_docs.py runs it,
in order with the others of its page; `run: save FILE` writes it to a file instead, `run: wait JOB N` waits behind it
until N workers train), or `<!-- parse: why it is not run -->`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
_MARK = re.compile(r"<!-- (run|parse)(?:: (.+?))? -->\s*")


@dataclass(frozen=True, slots=True)
class Block:
    """`how`: run, parse, or nothing where there is no mark; `note`: what stands behind it."""

    page: str
    line: int
    language: str
    text: str
    how: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page of the documentation, relative to the repository."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def blocks_of(page: str, markdown: str | None = None) -> list[Block]:
    """The blocks of a page, in order; an indented one has no language."""
    if markdown is None:
        markdown = (ROOT / page).read_text(encoding="utf-8")
    found: list[Block] = []
    mark: re.Match[str] | None = None
    for token in MarkdownIt("commonmark").parse(markdown):
        line = (token.map or [0])[0] + 1
        if token.type == "html_block":
            mark = _MARK.fullmatch(token.content)
            continue
        if token.type in ("fence", "code_block"):
            how, note = (mark[1], mark[2] or "") if mark else ("", "")
            found.append(Block(page, line, token.info.strip(), token.content, how, note))
        mark = None
    return found


def spans_of(page: str) -> Iterator[tuple[int, str]]:
    """Line and text of each span of code within a sentence or a table."""
    parsed = MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8"))
    for token in parsed:
        if token.type == "inline":
            line = (token.map or [0])[0] + 1
            yield from ((line, child.content) for child in token.children or () if child.type == "code_inline")
