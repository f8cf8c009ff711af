"""The systems that the bench compares, each behind the same few verbs (base.System)."""
