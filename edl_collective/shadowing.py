"""Finds a user's file that hides one of our packages, before it fails in a way that nobody understands.

Our packages have everyday names, and Python looks into the script's own folder first.
"""

from importlib.util import find_spec
from pathlib import Path

OURS = ("jobserver", "jobclient", "distill", "checkpoints")


class ShadowedPackage(ImportError):
    """Raised when a file of the user's takes the place of one of our packages."""


def check_not_shadowed() -> None:
    """Raise ShadowedPackage, naming the file to rename, if one of our packages is not ours."""
    home = Path(__file__).resolve().parent.parent
    for name in OURS:
        if not (home / name).is_dir():
            continue
        spec = find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None
        if origin is None or origin.parent != home / name:
            raise ShadowedPackage(f"{origin} hides the package {name!r} of EDL: rename that file, or move it elsewhere")
