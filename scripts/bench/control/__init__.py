"""scripts/bench.sh control: what it costs to decide about a large cluster, and how well the decisions use it."""
