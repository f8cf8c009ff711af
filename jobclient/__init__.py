"""The JobClient: starts, watches and stops every process of its node."""
