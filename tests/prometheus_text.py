"""Prometheus's text format, read as strictly as `promtool check metrics` does, for tests."""

import re

#: the last word of a metric's name, "total" of a counter apart: its unit, or what it counts
_WORDS = (
    "seconds bytes ratio second step info "  # units, also "a second" and "a step"
    "nodes slots jobs workers epochs steps samples requests teachers students problems turns streams answers "
    "batches failures connections fds "
    "generation attempt priority loss accuracy leading connected"
)
UNITS = frozenset(_WORDS.split())
_NAME = r"[a-z][a-z0-9_]*"
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? (\S+)")
_LABEL = re.compile(rf'({_NAME})="((?:[^"\\]|\\["\\n])*)"(?:,|$)')
Sample = tuple[str, *tuple[tuple[str, str], ...]]


def parse(text: str) -> dict[Sample, float]:
    """Value by name and sorted labels. Fails on whatever Prometheus refuses or `promtool` complains about."""
    assert text.endswith("\n")
    found: dict[Sample, float] = {}
    kinds: dict[str, str] = {}
    family = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family, _, said = line.removeprefix("# HELP ").partition(" ")
            assert family not in kinds, f"{family} is told in two places"
            assert said, line
        elif line.startswith("# TYPE "):
            name, _, kind = line.removeprefix("# TYPE ").partition(" ")
            assert name == family, f"{name} has no HELP before it"
            assert kind in ("counter", "gauge", "summary"), line
            assert (kind == "counter") == name.endswith("_total"), f"{name} is a {kind}"
            assert name.removesuffix("_total").split("_")[-1] in UNITS, f"{name} names no unit"
            kinds[name] = kind
        elif not line.startswith("#"):
            name, labels, value = _sample(line)
            of = re.sub("_(sum|count)$", "", name) if kinds.get(family) == "summary" else name
            assert of == family, f"{name} stands among the samples of {family}"
            sample: Sample = (name, *sorted(labels.items()))
            assert sample not in found, f"{line} is told twice"
            found[sample] = value
    return found


def _sample(line: str) -> tuple[str, dict[str, str], float]:
    match = _SAMPLE.fullmatch(line)
    assert match, line
    inside = match[2] or ""
    labels = _LABEL.findall(inside)
    assert "".join(f'{name}="{value}",' for name, value in labels) == (f"{inside}," if inside else ""), line
    assert len(dict(labels)) == len(labels), line
    return match[1], dict(labels), float(match[3])
