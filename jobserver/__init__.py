"""The JobServer: decides which slots each job has; runs nothing itself.

Invariant: `__version__` is the only place where the version is written; setup.py reads it from here.
"""

__version__ = "0.1.0"
