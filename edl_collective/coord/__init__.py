"""Coordination: what EDL keeps in ZooKeeper and how it is read and written safely.

Importing this package loads no torch, no Horovod and no web framework.
"""
