"""edl teacher: models that run as services, for students elsewhere; each command is imported when it is used."""

import click

from jobserver.cli.lazy import LazyGroup

#: command -> (module, its short help)
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("distill.teacher.command", "Serve a model to students (Open Inference Protocol)."),
    "ls": ("jobserver.cli.fleet", "List the services, or the teachers and students of one."),
    "top": ("jobserver.cli.fleet", "The same, again and again."),
    "register": ("distill.teacher.register_command", "List a server of another make (Triton, OVMS, KServe)."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def teacher() -> None:
    """Models that run as services, for students elsewhere."""
