"""Reads the step logs of a folder again and again, each line once: polling must not take the cores from the jobs."""

from pathlib import Path

from bench.steps import Step, parse_steps


class StepFiles:
    """The logs <pid>.steps of a folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_bytes: dict[Path, int] = {}
        self._steps: list[Step] = []

    def read(self) -> list[Step]:
        """All steps up to now, in order of time. A line that is not complete yet is left for the next call."""
        found = [step for path in self._folder.glob("*.steps") for step in self._new_steps(path)]
        if found:
            self._steps += found
            self._steps.sort()
        return self._steps.copy()

    def _new_steps(self, path: Path) -> list[Step]:
        done = self._read_bytes.get(path, 0)
        with path.open("rb") as file:
            file.seek(done)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read_bytes[path] = done + len(whole)
        return parse_steps(whole, int(path.stem))
