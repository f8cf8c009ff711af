"""Arguments that name a job, node, worker or service: checked here, since they become parts of addresses.

Invariant: their completion in a shell is quick and quiet. Where no JobServer answers in a moment, nothing is offered.
"""

from typing import Any

import click
from click.shell_completion import CompletionItem

from edl_collective.coord.paths import check_name
from jobserver.cli.client import api_of

TIME_LIMIT_S = 1.0


class Name(click.types.StringParamType):
    """What names a `kind`. `listed`: where the JobServer lists them all, None if it does not."""

    def __init__(self, kind: str, listed: str | None = None) -> None:
        self.name = kind
        self._listed = listed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_name(self.name, str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002  click calls it so
        incomplete: str,
    ) -> list[CompletionItem]:
        if self._listed is None:
            return []
        try:
            rows = api_of(ctx.params, TIME_LIMIT_S).get(f"/{self._listed}")[self._listed]
            return [CompletionItem(row[self.name]) for row in rows if row[self.name].startswith(incomplete)]
        except (click.ClickException, OSError, ValueError, KeyError, TypeError):  # the prompt is no place for errors
            return []


JOB = Name("job", "jobs")
NODE = Name("node", "nodes")
WORKER = Name("worker")
SERVICE = Name("service")
