"""The training library of EDL: a PyTorch script that keeps training while workers come and go.

Lazy: importing edl_collective loads no torch and no Horovod; the first use of a public name does.
"""
