"""Pieces of Markdown made from values. [pure]"""

import re
from collections.abc import Iterable, Sequence


def cell(text: str) -> str:
    """Text in a cell of a table, as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([|*])", r"\\\1", text)
    return " ".join(text.split())


def code(text: str) -> str:
    """A span of code in a cell, where Python-Markdown takes a | as it is."""
    return f"`{text}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def fence(language: str, text: str) -> str:
    return f"```{language}\n{text.strip(chr(10))}\n```"
