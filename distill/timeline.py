"""A timeline in the Trace Event Format, which chrome://tracing and ui.perfetto.dev show.

Several processes write to one file: each appends whole lines, times are of the machine's monotonic clock. The file is
an array whose end `finish` writes; viewers read it without the end as well.

Source: "Trace Event Format" (Google), JSON Array Format, complete events ("ph": "X") in microseconds.
"""

import json
import os

_FLUSH_BYTES = 1 << 16


class Timeline:
    """Appends to the file of `path`; the trainer creates it with `create`."""

    def __init__(self, path: str, process: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._pid = os.getpid()
        self._lines: list[str] = []
        self._size = 0
        self._tracks: dict[str, int] = {}
        self._add({"ph": "M", "name": "process_name", "pid": self._pid, "tid": 0, "args": {"name": process}})

    @classmethod
    def create(cls, path: str, process: str) -> "Timeline":
        """Begin a new file. Raises OSError when it cannot be written."""
        with open(path, "w", encoding="utf-8") as file:
            file.write("[\n")
        return cls(path, process)

    def span(self, track: str, name: str, begin_s: float, end_s: float, **details: object) -> None:
        """Something that lasted, on a line of its own kind (a teacher, the trainer)."""
        event = {"ph": "X", "name": name, "pid": self._pid, "tid": self._track(track), "ts": round(begin_s * 1e6)}
        self._add({**event, "dur": round((end_s - begin_s) * 1e6), "args": details})

    def flush(self) -> None:
        """Write what is there."""
        if self._lines:
            os.write(self._fd, "".join(self._lines).encode())
            self._lines, self._size = [], 0

    def finish(self) -> None:
        """Write the rest and the end of the array; for the process that created it, after the others have ended."""
        self.flush()
        os.write(self._fd, b"{}]\n")
        os.close(self._fd)

    def _track(self, name: str) -> int:
        if name not in self._tracks:
            self._tracks[name] = len(self._tracks) + 1
            number = self._tracks[name]
            self._add({"ph": "M", "name": "thread_name", "pid": self._pid, "tid": number, "args": {"name": name}})
        return self._tracks[name]

    def _add(self, event: dict[str, object]) -> None:
        line = json.dumps(event) + ",\n"
        self._lines.append(line)
        self._size += len(line)
        if self._size > _FLUSH_BYTES:
            self.flush()
