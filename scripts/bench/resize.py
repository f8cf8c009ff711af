"""bench.sh resize: runs the trials one after another and collects their rows.

Invariant: whatever a system does, its trial ends within bounded time and its processes are gone before the next one.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil

from bench.cases import Act, Case, Trial
from bench.errors import BenchError, NotApplicable, NotInstalled, SystemFailed
from bench.rows import Rows
from bench.steps import Pause, longest_gap_s, pause_after, redone
from bench.systems.base import POLL_S, JobOptions, System

#: how long a system may take to start, to do what a case asks for, and to go on
START_LIMIT_S = 120.0
EVENT_LIMIT_S = 90.0
#: after this long without a step, with nothing asked for, a job stands still
STILL_LIMIT_S = 40.0
#: between the death of a coordinator and the request that proves that the system works again
WATCH_S = 1.0
RENDEZVOUS_LIMIT_S = 300.0

_SYSTEMS = {
    "edl": ("bench.systems.edl_system", "Edl", "horovod"),
    "horovod": ("bench.systems.horovod_system", "Horovod", "horovod"),
    "torchrun": ("bench.systems.torchrun_system", "Torchrun", "torch"),
    "torchft": ("bench.systems.torchft_system", "Torchft", "torchft"),
}


def system_class(name: str) -> type[System]:
    """The class of a system. NotInstalled when the package behind it is missing."""
    module, attribute, package = _SYSTEMS[name]
    if find_spec(package) is None:
        raise NotInstalled(f"no package {package}: run scripts/setup.sh --extras bench")
    found: type[System] = getattr(importlib.import_module(module), attribute)
    return found


def run_trials(trials: Sequence[Trial], say: Callable[[str], None]) -> Rows:
    """Run all trials; failures become rows."""
    rows = Rows()
    left_s = sum(trial.estimate_s for trial in trials)
    pace = 1.0
    for number, trial in enumerate(trials, 1):
        say(f"[{number}/{len(trials)}] run {trial.run + 1}, {trial.session.name}, {trial.system}; "
            f"about {left_s * pace / 60:.1f} min left, load {os.getloadavg()[0]:.1f}")  # fmt: skip
        began_s = time.monotonic()
        run_trial(trial, rows, say)
        left_s -= trial.estimate_s
        pace = 0.7 * pace + 0.3 * (time.monotonic() - began_s) / trial.estimate_s
    return rows


def run_trial(trial: Trial, rows: Rows, say: Callable[[str], None]) -> None:
    """All cases of a session on one cluster; after a failure the rest goes on with a new one."""
    todo = list(trial.cases)
    while todo:
        try:
            with tempfile.TemporaryDirectory(prefix=f"edl-bench-{trial.system}-") as folder:
                system = system_class(trial.system)(Path(folder), trial.session.max_np, _options(trial))
                try:
                    _run_cases(system, todo, rows, say)
                finally:
                    system.close()
        except BenchError as error:
            case = todo.pop(0)
            metric = "not_applicable" if isinstance(error, NotApplicable) else "failed"
            say(f"    {case.name}: {metric}: {error}")
            rows.fail(case.name, trial.system, str(error), metric)


def _options(trial: Trial) -> JobOptions:
    return JobOptions(frozen_mb=trial.session.frozen_mb, save_every=trial.session.save_every)


def _run_cases(system: System, todo: list[Case], rows: Rows, say: Callable[[str], None]) -> None:
    """Take cases off `todo` as they are done; what is first in it when this raises is what failed."""
    began = False
    while todo:
        case = todo[0]
        if not began:
            system.start(case.before)
            began = True
        elif len(system.present_world()) != case.before:
            system.resize(case.before)
        system.wait_for_world(case.before, START_LIMIT_S)
        metrics = measure(system, case)
        rows.add(case.name, system.name, **metrics)
        say(f"    {case.name}: " + ", ".join(f"{name} {value:.3g}" for name, value in metrics.items()))
        todo.pop(0)


def measure(system: System, case: Case) -> dict[str, float]:
    """Do what the case says and wait for what follows. SystemFailed when it does not follow."""
    if case.act in (Act.COORDINATOR, Act.DRIVER):
        return _measure_without(system, case)
    if case.act is Act.NODE:
        system.prepare_node_loss()
    event_s = time.monotonic()
    if case.act is Act.RESIZE:
        assert case.to is not None
        system.resize(case.to)
    elif case.act is Act.KILL:
        system.kill_worker()
    else:
        system.lose_node()
    pause = _await_pause(system, event_s, case.after)
    metrics = {"pause_s": pause.pause_s, "steps_lost": float(pause.steps_lost), "total_s": pause.total_s}
    if system.starts_before_pause and case.to is not None and case.to > case.before:
        metrics["cold_start_s"] = pause.total_s - pause.pause_s
    return metrics


def _measure_without(system: System, case: Case) -> dict[str, float]:
    """Kill a coordinator, watch the training go on, then ask for another size."""
    assert case.to is not None
    system.prepare_coordinator_loss()
    watched_s = time.monotonic()
    while time.monotonic() < watched_s + WATCH_S:
        system.wait_for_steps(1, START_LIMIT_S)
    event_s = time.monotonic()
    before_s = longest_gap_s(system.steps(), watched_s, event_s)
    system.kill_coordinator() if case.act is Act.COORDINATOR else system.kill_driver()
    while not any(step.at_s > event_s + WATCH_S for step in system.steps()):
        if time.monotonic() > event_s + STILL_LIMIT_S:
            raise SystemFailed(f"no step was completed in the {STILL_LIMIT_S:g} s after it")
        time.sleep(POLL_S)
    asked_s = time.monotonic()
    system.resize(case.to)
    pause = _await_pause(system, asked_s, case.after)
    done_s = asked_s + pause.total_s
    gap_s = longest_gap_s(system.steps(), event_s, done_s - pause.pause_s)
    lost = redone(system.steps(), event_s)
    return {"pause_s": gap_s, "steps_lost": lost, "works_again_s": done_s - event_s, "gap_before_s": before_s}


def _await_pause(system: System, event_s: float, sizes: frozenset[int]) -> Pause:
    found: list[Pause] = []

    def over() -> bool:
        pause = pause_after(system.steps(), event_s, sizes)
        found.extend([] if pause is None else [pause])
        return pause is not None

    system.wait(over, EVENT_LIMIT_S, f"all of a world of {' or '.join(map(str, sorted(sizes)))} have completed a step")
    return found[0]


def run_rendezvous(size: int, runs: int, rows: Rows, say: Callable[[str], None]) -> None:
    """The rendezvous of `size` simulated workers, which a program of its own measures."""
    say(f"rendezvous of {size} workers, {runs} runs; load {os.getloadavg()[0]:.1f}")
    case = f"rendezvous-{size}"
    with tempfile.TemporaryDirectory(prefix="edl-bench-rendezvous-") as folder:
        to = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "bench.rendezvous", str(size), "--runs", str(runs), "--json", str(to)]
        try:
            done = subprocess.run(
                command,
                timeout=RENDEZVOUS_LIMIT_S * runs,
                check=False,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except subprocess.TimeoutExpired:
            rows.fail(case, "edl", f"not over after {RENDEZVOUS_LIMIT_S * runs:g} s")
            return
        if done.returncode or not to.exists():
            lines = done.stdout.decode(errors="replace").strip().splitlines()
            rows.fail(case, "edl", f"status {done.returncode}: {lines[-1] if lines else 'no output'}")
            return
        rows.others += json.loads(to.read_text())["rows"]


def machine() -> dict[str, object]:
    """The machine in words and numbers."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
    }
