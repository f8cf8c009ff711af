"""edl events: the history of a job, page by page, and as it grows."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from jobserver.cli.client import Api, BadInput, CommandFailed, plain, print_json, with_api
from jobserver.cli.following import lasting
from jobserver.cli.names import JOB

#: above the number of every event: ZooKeeper counts them with 31 bits
_ABOVE_ALL = 2**31
_ENDED = frozenset({"succeeded", "failed", "stopped"})

Json = dict[str, Any]


@click.command()
@click.argument("job", required=False, type=JOB)
@click.option("-f", "--follow", is_flag=True, help="go on until the job has ended, or Ctrl-C")
@click.option("--after", type=int, default=-1, help="only events with a higher number")
@click.option("--before", type=int, default=None, help="only events with a lower number")
@click.option("--limit", type=click.IntRange(1), default=None, help="the newest ones only; with --after, the next ones")
@with_api
def events(
    api: Api, as_json: bool, job: str | None, follow: bool, after: int, before: int | None, limit: int | None
) -> None:
    """Show what happened to JOB, and why; without JOB what happened to nodes: those that are not well, and recover.

    With --follow each event is printed when it happens, with --json as one line.
    """
    if follow and before is not None:
        raise BadInput("--follow and --before do not go together")
    if not follow:
        found = list(_pages(api, job, after, before, limit))
        if as_json:
            print_json({"events": found})
        else:
            print_events(found)
        return
    if limit is not None:
        newest = list(_pages(api, job, after, None, limit))
        after = newest[0]["number"] - 1 if newest and after < 0 else after
    for event in _follow_cluster(api, after) if job is None else _follow(api, job, after):
        if as_json:
            click.echo(json.dumps(event))
        else:
            print_events([event])


def print_events(found: list[Json]) -> None:
    """A line for each."""
    for event in found:
        at = datetime.fromtimestamp(event["at"]).strftime("%Y-%m-%d %H:%M:%S")
        click.echo(f"{event['number']:>6}  {at}  {event['kind']:<10}  {plain(event['text'])}")


def _pages(api: Api, job: str | None, after: int, before: int | None, limit: int | None) -> Iterator[Json]:
    """Events, oldest first: from `after` on, or the newest `limit` if only a limit is given."""
    path = "/events" if job is None else f"/jobs/{job}/events"
    if limit is not None and after < 0:
        yield from api.get(path, before=_ABOVE_ALL if before is None else before, limit=limit)["events"]
        return
    query = {} if before is None else {"before": before}
    following: int | None = after
    left = limit
    while following is not None and left != 0:
        page = api.get(path, after=following, **query, **({} if left is None else {"limit": left}))
        yield from page["events"]
        following = page["next"]
        left = None if left is None else left - len(page["events"])


def _follow(api: Api, job: str, after: int) -> Iterator[Json]:
    """Each event once, also when the server is lost and comes back."""
    watch = _Watch(job, after)
    for kind, data in lasting(lambda: api.stream(job=job, after=watch.after)):
        yield from watch.take(kind, data)
        if watch.over:
            return


def _follow_cluster(api: Api, after: int) -> Iterator[Json]:
    for kind, data in lasting(lambda: api.stream(topics="events")):
        if kind == "change" and data["topic"] == "events":
            for event in sorted(data["parts"].values(), key=lambda event: int(event["number"])):
                if event["number"] > after:
                    after = event["number"]
                    yield event


class _Watch:
    """What a stream has told of a job."""

    def __init__(self, job: str, after: int) -> None:
        self._job = job
        self.after = after
        self._phase: str | None = None
        self._told_phase: str | None = None
        self.over = False

    def take(self, kind: str, data: Json) -> list[Json]:
        """The events of a message that are new. Raises CommandFailed if there is no such job."""
        if kind == "change" and data["topic"] == f"job/{self._job}":
            self._look(data["parts"])
        new: list[Json] = []
        if kind == "events":
            new = [event for event in data["events"] if data["anew"] or event["number"] > self.after]
            for event in new:
                self.after = event["number"]
                if event["kind"] == "job":
                    self._told_phase = event["fields"].get("phase")
        # The event of an end is written after the end itself: if it is not there by the next beat, it was told before.
        ended = self._phase in _ENDED
        self.over = self.over or (ended and (self._told_phase == self._phase or kind == "beat"))
        return new

    def _look(self, parts: Json) -> None:
        if "missing" in parts:
            if self._phase is None:
                raise CommandFailed(parts["missing"])
            self.over = True
        self._phase = parts.get("phase", self._phase)
