"""Names of jobs and nodes for the completion of a shell.

Invariant: completion is quick and quiet. Where no JobServer answers in a moment, nothing is offered.
"""

from collections.abc import Callable

import click

from jobserver.cli.client import api_of

TIME_LIMIT_S = 1.0


def _names(what: str, key: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        try:
            rows = api_of(context.params, TIME_LIMIT_S).get(f"/{what}")[what]
            return [row[key] for row in rows if row[key].startswith(incomplete)]
        except (click.ClickException, OSError, ValueError, KeyError, TypeError):  # the prompt is no place for errors
            return []

    return complete


job_names = _names("jobs", "job")
node_names = _names("nodes", "node")
