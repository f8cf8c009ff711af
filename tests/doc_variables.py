"""The variables of the environment: those that the code names, and those that the configuration's page explains."""

import re
from dataclasses import fields

from doc_blocks import ROOT
from docsite.settings import teacher_variables

from distill.reader_options import PREFIX, ReaderOptions
from jobclient.config import OPTIONS as CLIENT_OPTIONS
from jobserver.config import OPTIONS as SERVER_OPTIONS

PAGE = ROOT / "docs" / "reference" / "configuration.md"
_FOLDERS = ("checkpoints", "distill", "edl_collective", "jobclient", "jobserver", "scripts", "examples", "deploy")
_KINDS = {".py", ".sh", ".yaml", ".service", ""}
#: beginnings that are put together with the names of options; and click's own, which nobody sets
_NOT_NAMES = {"EDL_", "EDL_TEACHER", "EDL_TEACHER_", "EDL_DISTILL_", "EDL_COMPLETE", "PADDLE_EDL_"}


def from_options() -> set[str]:
    """Those that are made of the names of options."""
    found = {f"EDL_{name.upper()}" for name in (*SERVER_OPTIONS, *CLIENT_OPTIONS, "changing")}
    return found | {f"{PREFIX}{field.name.upper()}" for field in fields(ReaderOptions)} | set(teacher_variables())


def in_code() -> set[str]:
    """Every name that the code has in it."""
    files = [path for folder in _FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in _KINDS]
    texts = (path.read_text(encoding="utf-8") for path in files if path.is_file() and "__pycache__" not in path.parts)
    found = {name for text in texts for name in re.findall(r"(?<![A-Z])(?:PADDLE_)?EDL_[A-Z0-9_]*", text)}
    return (found | {"PADDLE_JOB_ID"}) - _NOT_NAMES | from_options()


def on_page() -> set[str]:
    """Every name that the page has, also in what is generated into it."""
    written = set(re.findall(r"`((?:PADDLE_|EDL_)\w+)(?:=[^`]*)?`", PAGE.read_text(encoding="utf-8")))
    generated = {f"EDL_{name.upper()}" for name in (*SERVER_OPTIONS, *CLIENT_OPTIONS)} | set(teacher_variables())
    return written | generated
