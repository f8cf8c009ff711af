"""scripts/bench.sh: this project and its peers doing the same things to the same small job, side by side.

Invariant: nothing that a bench starts outlives it, and what a system cannot do becomes a row that says so.
It is a program, not a library: nothing installed imports it.
"""
