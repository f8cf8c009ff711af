"""Fixtures for every test."""

pytest_plugins = ["hdfs_fixtures"]
