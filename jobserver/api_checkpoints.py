"""GET /api/v1/jobs/JOB/checkpoints: which checkpoints a job has, and which are valid, as this JobServer sees them.

The nodes may see another file system than the JobServer: the answer says what it could not see, and never takes that
for "there are none".
"""

import asyncio
from typing import Protocol

import msgspec
from fastapi import FastAPI, Response

from jobserver.api_models import Json
from jobserver.checkpoint_looks import CheckpointLooks
from jobserver.snapshot import Job, Snapshot
from jobserver.topics import event_page


class _Service(Protocol):
    def job(self, name: str) -> tuple[Job, Snapshot]: ...


def add_checkpoints(app: FastAPI, service: _Service, looks: CheckpointLooks) -> None:
    """Add the endpoint; `app.state.checkpoint_looks` is to be closed before the server ends."""
    app.state.checkpoint_looks = looks

    @app.get("/api/v1/jobs/{job}/checkpoints")
    async def checkpoints(job: str) -> Response:
        found, _ = await asyncio.to_thread(service.job, job)
        url = found.spec.value.checkpoint_url
        unseen = why_not_seen(url)
        seen: Json = {"problem": unseen}
        if url is not None and unseen is None:
            seen = await asyncio.shield(asyncio.wrap_future(looks.at(url)))
        return Response(msgspec.json.encode(answer(found, seen)), media_type="application/json")


def why_not_seen(url: str | None) -> str | None:
    """Why a JobServer cannot know the place that `url` names; None if it can look."""
    if url is None:
        return "the job was submitted without --checkpoint: where its script saves is known to the script alone"
    if "://" not in url and not url.startswith("/"):
        return f"{url} begins in the job's folder on each node, where no JobServer looks: give a whole path or a URL"
    return None


def answer(job: Job, seen: Json) -> Json:
    """`seen`: what a look told. Which checkpoints there are, or `problem`: why that is not known."""
    rows = seen.get("checkpoints")
    told = sum(map(_is_save, event_page(job.events, None, None, len(job.events))["events"]))
    problem = seen.get("problem")
    if problem is not None and rows is None and "took_s" in seen:
        problem = f"this JobServer cannot look at it (its workers may): {problem}"
    elif rows == [] and told:
        problem = f"the job told of {told} saves, but this JobServer sees none: is the folder on its nodes alone?"
    return {
        "job": job.name,
        "url": job.spec.value.checkpoint_url,
        "checkpoints": rows,
        "total": seen.get("total"),
        "problem": problem,
        "at": seen.get("at"),
        "took_s": seen.get("took_s"),
    }


def _is_save(event: Json) -> bool:
    return bool(event["kind"] == "checkpoint" and event["fields"].get("outcome", "saved") == "saved")
