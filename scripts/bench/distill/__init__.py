"""scripts/bench.sh distill: what service distillation costs, and what it wins, beside its peers."""
