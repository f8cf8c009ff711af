"""Processes found by a variable of their environment, which children inherit: so none escapes whoever set it."""

import os
from collections.abc import Callable

import psutil


def processes_with(variable: str, wanted: Callable[[str], bool]) -> list[psutil.Process]:
    """Every process but this one that has `variable`, set to what is `wanted`."""
    found = []
    for process in psutil.process_iter():
        try:
            value = process.environ().get(variable) if process.pid != os.getpid() else None
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if value is not None and wanted(value):
            found.append(process)
    return found
