"""What mkdocs.yml calls while the site is built.

`<!-- generated: NAME -->` in a page becomes what GENERATED makes of the code; pages outside docs/ are brought in
(docsite.mounts); the decisions get into the navigation by themselves.
"""

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "scripts"):  # where mkdocs is started without scripts/docs.sh
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
os.environ["COLUMNS"] = "100"  # of what argparse and click print

from docsite import commands, http_api, settings  # noqa: E402  they need the path
from docsite.markup import table  # noqa: E402
from docsite.mounts import MOUNTS, for_site  # noqa: E402

log = logging.getLogger("mkdocs.hooks.docsite")
_MARK = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
_DECISIONS = ROOT / "docs" / "decisions"


def decisions() -> str:
    """The list of all decisions, newest first."""
    rows = [(f"[{path.stem[:3]}]({path.name})", _title(path)) for path in sorted(_DECISIONS.glob("[0-9]*.md"))]
    return table(("", "decision"), reversed(rows))


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").partition(": ")[2]


GENERATED: dict[str, Callable[[], str]] = {
    "edl": commands.edl_reference,
    "programs": commands.program_reference,
    "scripts": commands.script_reference,
    "http": http_api.http_reference,
    "server-options": settings.server_options,
    "client-options": settings.client_options,
    "teacher-options": settings.teacher_options,
    "decisions": decisions,
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the decisions behind their index."""
    for folder in _lists(config.nav or []):
        if folder == ["decisions/index.md"]:
            folder += [f"decisions/{path.name}" for path in sorted(_DECISIONS.glob("[0-9]*.md"))]
    return config


def _lists(value: Any) -> list[list[Any]]:
    """Every list below a part of the navigation."""
    children = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    found = [value] if isinstance(value, list) else []
    return found + [inner for child in children for inner in _lists(child)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for path, page in MOUNTS.items():
        if (ROOT / path).is_file():
            files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Make what is generated, and turn links."""
    source = next((path for path, site in MOUNTS.items() if site == page.file.src_uri and path.endswith(".md")), None)
    markdown = for_site(markdown, source or f"docs/{page.file.src_uri}", lambda path: (ROOT / path).exists())
    return _MARK.sub(lambda found: _generated(found[1], page.file.src_uri), markdown)


def _generated(name: str, page: str) -> str:
    if name not in GENERATED:
        log.warning("%s: nothing is called %r that could be generated; hooks.py knows %s", page, name, list(GENERATED))
        return ""
    return GENERATED[name]()
