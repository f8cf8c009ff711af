"""edl submit, ps, describe, scale, stop, delete: one request each."""

import re
from pathlib import Path
from typing import Any

import click

from jobserver.cli.changes import wanted
from jobserver.cli.client import Api, BadInput, plain, print_json, print_table, tell, with_api
from jobserver.cli.events import print_events
from jobserver.cli.names import JOB

_STEP = re.compile(r"(\d+(?:\.\d+)?)(s?):(\d+)")
_RULE = re.compile(r"(\d+(?:\.\d+)?)s:-(\d+)\+(\d+)")


def parse_schedule(text: str) -> dict[str, Any]:
    """The schedule of "0:1,2:2" (epoch:np), "0s:1,60s:2" (seconds:np) or "900s:-1+1" (every 900 s, changing).

    Raises ValueError.
    """
    rule = _RULE.fullmatch(text.strip())
    if rule:
        return {"change": {"every_s": float(rule[1]), "remove": int(rule[2]), "add": int(rule[3])}}
    steps = [_STEP.fullmatch(part.strip()) for part in text.split(",")]
    found = [step for step in steps if step is not None]
    kinds = {step[2] for step in found}
    if len(found) < len(steps) or len(kinds) != 1:
        raise ValueError(
            f'schedule {text!r} is not understood: write "0:1,2:2" (epoch:np), "0s:1,60s:2" (seconds:np) '
            'or "900s:-1+1" (every 900 s one leaves, then one joins)'
        )
    if kinds == {"s"}:
        return {"times": [{"after_s": float(step[1]), "np": int(step[3])} for step in found]}
    if any("." in step[1] for step in found):
        raise ValueError(f"schedule {text!r}: an epoch is a whole number")
    return {"epochs": [{"epoch": int(step[1]), "np": int(step[3])} for step in found]}


def default_name(command: tuple[str, ...]) -> str:
    """A job's name from its command: the script's name without its ending."""
    script = next((part for part in command if part.endswith(".py")), command[0])
    return re.sub(r"[^A-Za-z0-9._-]", "-", Path(script).stem).strip("-._")[:63] or "job"


class _Submit(click.Command):
    """Says where the command begins to whoever gives it options of its own without that."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            text = f"{error.message} What runs comes after --: edl submit [OPTIONS] -- python train.py --epochs 3."
            raise click.NoSuchOption(error.option_name, text, error.possibilities, ctx) from error


@click.command(cls=_Submit)
@click.option("--name", default=None, help="name of the job (default: of its service or script)")
@click.option("--min-np", type=int, default=None, help="fewest workers it may run with (default: 1)")
@click.option("--max-np", type=int, default=None, help="most workers it may have (default: --np, else --min-np)")
@click.option("--np", type=int, default=None, help="wanted workers (default: as many as fit, or the schedule)")
@click.option("--priority", type=int, default=None, help="higher is served first, and may take slots (default: 0)")
@click.option("--spares", type=int, default=None, help="standbys kept warm where no job wants the slot (default: 0)")
@click.option("--schedule", default=None, help='"0:1,2:2" (epoch:np), "0s:1,60s:2" or "900s:-1+1"')
@click.option("--checkpoint", default=None, help="URL of the checkpoint directory")
@click.option("--work-dir", default=None, help="where the command runs (default: the current directory)")
@click.option("--env", "pairs", multiple=True, metavar="NAME=VALUE", help="environment of the workers; repeatable")
@click.option("--package-sh", default=None, help="run as FILE -pod_id WORKER before each worker")
@click.option("--pod-path", default=None, help="each worker runs in DIR/<worker>")
@click.option(
    "--kind",
    type=click.Choice(["elastic", "external", "teacher"]),
    default=None,
    help="external: run by horovodrun; teacher: workers that serve a model, each for itself",
)
@click.option("--service", default=None, help="of teachers: the service that they serve; implies --kind teacher")
@click.option("--max-restarts", type=int, default=None, help="new attempts after all workers died (default: 3)")
@click.option("--max-failures", type=int, default=None, help="worker failures between two epochs (default: 10)")
@click.option("--hold-timeout", type=float, default=None, help="seconds below --min-np until it fails (default: 600)")
@click.option("--warm-timeout", type=float, default=None, help="seconds from start to the gate (default: 1800)")
@click.option("--return-timeout", type=float, default=None, help="seconds of silence after an abort (default: 5)")
@click.argument("command", nargs=-1)
@with_api
def submit(
    api: Api,
    as_json: bool,
    command: tuple[str, ...],
    name: str | None,
    schedule: str | None,
    work_dir: str | None,
    pairs: tuple[str, ...],
    **options: Any,
) -> None:
    """Submit a job: edl submit [OPTIONS] -- python train.py ARGS.

    Teachers: edl submit --service NAME --max-np 8 -- edl teacher serve --model FILE. Without --np their number follows
    what the students of the service need, between --min-np and --max-np.
    """
    if not command:
        raise BadInput("the command is missing: edl submit [OPTIONS] -- python train.py")
    if options["service"] is not None and options["kind"] is None:
        options["kind"] = "teacher"
    body = _spec(options)
    body |= {"job": name or options["service"] or default_name(command), "command": command}
    body["work_dir"] = str(Path(work_dir or ".").absolute())
    if schedule is not None:
        try:
            body["schedule"] = parse_schedule(schedule)
        except ValueError as error:
            raise BadInput(str(error)) from error
    if pairs:
        body["env"] = _environment(pairs)
    answer = api.post("/jobs", body)
    tell(answer, as_json, f"job {answer['job']} {'is submitted' if answer['created'] else 'exists already'}")


def _spec(options: dict[str, Any]) -> dict[str, Any]:
    names = {"checkpoint": "checkpoint_url", "package_sh": "package_hook"}
    names |= {option: f"{option}_s" for option in ("hold_timeout", "warm_timeout", "return_timeout")}
    return {names.get(option, option): value for option, value in options.items() if value is not None}


def _environment(pairs: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise BadInput(f"--env {pair!r} is not NAME=VALUE")
        found[name] = value
    return found


@click.command()
@with_api
def ps(api: Api, as_json: bool) -> None:
    """List the jobs.

    WORKERS: in the world, or teachers that serve, then those that are planned, then the bounds. WAIT S: seconds that
    each step waits for teachers.
    """
    answer = api.get("/jobs")
    if as_json:
        print_json(answer)
        return
    rows: list[tuple[object, ...]] = [
        (
            job["job"],
            job["phase"] if job["queue"] is None else f"{job['phase']} (no. {job['queue']})",
            job["priority"],
            _workers(job),
            job["epoch"] if job["epochs_total"] is None else f"{job['epoch']}/{job['epochs_total']}",
            job["step"],
            _round(job["samples_per_s"], 1),
            _round(job["loss"], 4),
            _round(job["teacher_wait_s_per_step"], 3),
            _first_line(job["reason"]),
        )
        for job in answer["jobs"]
    ]
    columns = ("JOB", "PHASE", "PRIORITY", "WORKERS", "EPOCH", "STEP", "SAMPLES/S", "LOSS", "WAIT S", "REASON")
    print_table(columns, rows)


@click.command()
@click.argument("job", type=JOB)
@with_api
def describe(api: Api, as_json: bool, job: str) -> None:
    """Show everything about a job."""
    found = api.get(f"/jobs/{job}")
    if as_json:
        print_json(found)
        return
    spec, plan, progress = found["spec"], found["plan"], found["progress"] or {}
    status = found["status"] or {"attempt": 1, "failures": 0, "restarts": 0}
    for label, value in (
        ("job", f"{job} ({found['kind']})"),
        ("phase", f"{found['phase']}{_place(found)}: {found['reason']}"),
        ("version", found["version"]),
        ("command", " ".join(spec["command"])),
        ("workers", f"{_workers(found)}, np {spec['np'] or 'open'}"),
        ("spares", f"{found['spares']} of {spec['spares']}"),
        ("plan", f"revision {plan['revision']}, {_driver(plan)}: {plan['reason']}" if plan else "none"),
        ("priority", found["priority"]),
        ("speeds", ", ".join(f"{np}: {rate:.4g} samples/s" for np, rate in sorted(status.get("speeds", ()))) or "none"),
        ("attempt", f"{status['attempt']} ({status['restarts']} restarts, {status['failures']} failures this epoch)"),
        ("training", _training(progress)),
        ("time", _times(found["goodput"])),
        ("checkpoint", spec["checkpoint_url"] or "none"),
    ):
        click.echo(f"{label:<11}{plain(value)}")
    workers: list[tuple[object, ...]] = [
        (w["worker"], w["node"], w["slot"], w["state"], w["pid"], w["generation"], w["outcome"], w["exit_code"])
        for w in found["worker_records"]
    ]
    click.echo()
    print_table(("WORKER", "NODE", "SLOT", "STATE", "PID", "GENERATION", "OUTCOME", "EXIT"), workers)
    click.echo()
    print_events(found["events"])


def _driver(plan: dict[str, Any]) -> str:
    return "no driver" if plan["driver_node"] is None else f"driver on {plan['driver_node']}"


def _first_line(reason: str) -> str:
    """A log may follow it, which `edl describe` shows."""
    return reason.partition("\n")[0].removesuffix("; the end of its log:")


def _place(job: dict[str, Any]) -> str:
    return "" if job["queue"] is None else f" (no. {job['queue']} in the queue)"


def _workers(job: dict[str, Any]) -> str:
    """In the world, or serving, of those that are planned; the bounds."""
    return f"{job['world_size']}/{job['workers']} of {job['min_np']}..{job['max_np']}"


def _times(ledger: dict[str, float]) -> str:
    """The kinds of time, the longest first."""
    total_s = sum(ledger.values())
    kinds = sorted(((seconds, kind) for kind, seconds in ledger.items() if seconds > 0), reverse=True)
    parts = ", ".join(f"{kind} {seconds:.1f} s ({100 * seconds / total_s:.0f} %)" for seconds, kind in kinds)
    return f"{total_s:.1f} s: {parts}" if parts else "none yet"


def _training(progress: dict[str, Any]) -> str:
    if not progress:
        return "nothing reported yet"
    figures = [f"epoch {progress['epoch']}", f"step {progress['step']}", f"world size {progress['world_size']}"]
    for name, label in (("samples_per_s", "samples/s"), ("loss", "loss"), ("accuracy", "accuracy")):
        if progress[name] is not None:
            figures.append(f"{label} {progress[name]:.4g}")
    if progress["teacher_wait_s_per_step"] is not None:
        figures.append(f"each step waits {progress['teacher_wait_s_per_step']:.3g} s for teachers")
    return ", ".join(figures)


@click.command()
@click.argument("job", type=JOB)
@click.argument("np")
@with_api
def scale(api: Api, as_json: bool, job: str, np: str) -> None:
    """Change how many workers a job has; NP is a number, or auto for its schedule."""
    answer = api.post(f"/jobs/{job}/scale", {"np": wanted(np)})
    wish = "what its schedule says" if np == "auto" else "1 worker" if int(np) == 1 else f"{int(np)} workers"
    tell(answer, as_json, f"job {job} wants {wish}")


@click.command()
@click.argument("job", type=JOB)
@click.option("--reason", default="", help="why, in a line: it is shown wherever the job is")
@with_api
def stop(api: Api, as_json: bool, job: str, reason: str) -> None:
    """Stop a job; its workers end at their next step. `edl cancel` waits for that."""
    tell(api.post(f"/jobs/{job}/stop", {"reason": reason}), as_json, f"job {job} is being stopped")


@click.command()
@click.argument("job", type=JOB)
@with_api
def delete(api: Api, as_json: bool, job: str) -> None:
    """Forget a job that has ended, so that its name is free; logs and checkpoints stay."""
    tell(api.delete(f"/jobs/{job}"), as_json, f"job {job} is forgotten")


def _round(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
