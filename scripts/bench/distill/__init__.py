"""The cases of `bench.sh distill`: each a function that returns rows."""
