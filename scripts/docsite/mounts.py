"""Pages of the site that lie outside docs/, links between pages, and GitHub's Markdown for Python-Markdown. [pure]

Invariant: a link that leads to a page on GitHub leads to the same page on the site; one to a file that is no page
becomes its path; one to nothing stays as it is, so that the strict build refuses it.
"""

import posixpath
import re
from collections.abc import Callable, Iterator

#: path in the repository -> page of the site; what lies in docs/ has the same path there
MOUNTS = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/resnet50_pod/README.md": "examples/resnet50_pod.md",
    "examples/distill_digits/README.md": "examples/distill_digits.md",
    "docs/decisions": "decisions/index.md",
}
_FENCE = re.compile(r"^\s*(```|~~~)")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_ITEM = re.compile(r"^(?:[-*+]|\d+\.) ")


def page_of(path: str) -> str | None:
    """The page, or file, of the site that a path of the repository is; None if it is none."""
    return MOUNTS.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)


def for_site(markdown: str, source: str, exists: Callable[[str], bool]) -> str:
    """A page for the site. source: its path in the repository; exists: of such a path."""
    lines: list[str] = []
    for line, is_text in _marked(markdown):
        if is_text:
            if _begins_block(line, lines[-1] if lines else ""):
                lines.append("")
            if line.startswith("|"):  # where Python-Markdown wants no escape in code
                line = re.sub("`[^`]*`", lambda code: code[0].replace("\\|", "|"), line)
            line = _LINK.sub(lambda found: _link(found, source, exists), line)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _marked(markdown: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is text: what stands in a fence is not."""
    fence: str | None = None
    for line in markdown.splitlines():
        found = _FENCE.match(line)
        if found and fence is None:
            fence = found[1]
            yield line, False
        else:
            yield line, fence is None
            if found and found[1] == fence:
                fence = None


def _begins_block(line: str, before: str) -> bool:
    """Whether a list or a table begins under a line of text, which Python-Markdown would take for more of that text."""
    if not before.strip():
        return False
    if line.startswith("|"):
        return not before.startswith("|")
    # an indented line before it belongs to an item
    return bool(_ITEM.match(line)) and not _ITEM.match(before) and not before.startswith(" ")


def _link(found: re.Match[str], source: str, exists: Callable[[str], bool]) -> str:
    bang, text, target, fragment = found[1], found[2], found[3], found[4] or ""
    if ":" in target:
        return found[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    page = page_of(path)
    if page is not None:
        own = page_of(source) or ""
        return f"{bang}[{text}]({posixpath.relpath(page, posixpath.dirname(own) or '.')}{fragment})"
    if not exists(path):
        return found[0]
    return f"`{path}`" if text.strip("`./") in path else f"{text} (`{path}`)"
