"""Metrics as Prometheus reads them: text, version 0.0.4. [pure]"""

from collections.abc import Iterable, Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4"

#: labels and value; None: there is none to tell
Sample = tuple[Mapping[str, str], float | None]


def family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """The lines of one metric: `kind` is counter or gauge, `text` says what it counts."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        if value is not None:
            yield f"{name}{label_text(labels)} {value:.12g}"


def label_text(labels: Mapping[str, str]) -> str:
    """{name="value",...}; nothing without labels."""
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
