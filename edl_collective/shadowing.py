"""Names a user's file that hides one of our packages, before it fails somewhere else with a riddle.

Python takes the first `checkpoints` on its search path; a script's own checkpoints.py or distill.py comes before an
installed package. It looks at files only: nothing is imported.
"""

import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("checkpoints", "distill", "edl_collective", "jobserver", "jobclient")
_HOME = Path(__file__).resolve().parents[1]


class ShadowedError(ImportError):
    """Raised when a file of the user's would be imported in place of one of our packages."""


def find_shadowing(search_path: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Each of our packages that `search_path` resolves to somebody else's file, with that file."""
    for name in PACKAGES:
        spec = PathFinder.find_spec(name, list(search_path))
        if spec is None:
            continue
        found = spec.origin or next(iter(spec.submodule_search_locations or ()), None)
        # A folder without an __init__.py is found last of all, so it hides nothing that is installed.
        if found is not None and spec.origin is not None and not Path(found).resolve().is_relative_to(_HOME):
            yield name, Path(found)


def check_not_shadowed(search_path: Sequence[str] | None = None) -> None:
    """Raise ShadowedError if `search_path` (default: sys.path) hides one of our packages."""
    for name, file in find_shadowing(sys.path if search_path is None else search_path):
        raise ShadowedError(f"{file} hides EDL's package {name!r}: rename that file")
