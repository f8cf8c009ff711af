"""What a process tells Prometheus of itself, under the names that Prometheus's own libraries have for it."""

from collections.abc import Iterator

import psutil

from distill.exposition import family


def process_lines() -> Iterator[str]:
    """Lines of the text format about this process."""
    process = psutil.Process()
    with process.oneshot():
        times = process.cpu_times()
        for name, kind, text, value in (
            ("cpu_seconds_total", "counter", "seconds of CPU, of user and system", times.user + times.system),
            ("resident_memory_bytes", "gauge", "memory in use", process.memory_info().rss),
            ("open_fds", "gauge", "open files and connections", process.num_fds()),
            ("start_time_seconds", "gauge", "wall time of its start", process.create_time()),
        ):
            yield from family(f"process_{name}", kind, text, [({}, value)])
