"""The JobServer: plans elastic jobs. This package file holds the project's version and imports nothing.

Invariant: `__version__` is the only place where the version is written; setup.py reads it from here.
"""

__version__ = "0.1.0"
