"""What the HTTP interface and the command line say of services, as plain JSON values. [pure]"""

import math
from collections.abc import Iterable, Mapping

from distill.balance import known_rates
from distill.listing import Listing
from distill.records import to_dict
from jobserver.api_models import ApiError, Json
from jobserver.snapshot import Snapshot
from jobserver.teacher_rule import starved_part


def service_rows(services: Mapping[str, Listing], jobs: Mapping[str, Iterable[str]]) -> list[Json]:
    """One line of the list for each service; `jobs`: names of the jobs that serve, by service."""
    return [service_row(name, services.get(name, Listing()), jobs.get(name, ())) for name in sorted({*services, *jobs})]


def service_row(name: str, listing: Listing, jobs: Iterable[str] = ()) -> Json:
    """Sums over a service: rates and demand in samples a second, `starved` between 0 and 1, `starved_s` in seconds."""
    teachers, students = listing.teachers.values(), listing.students.values()
    demands = [s.demand for s in students if s.demand is not None]
    return {
        "service": name,
        "teachers": len(teachers),
        "draining": sum(t.draining for t in teachers),
        "students": len(students),
        "rate": math.fsum(known_rates(teachers).values()) if any(t.rate for t in teachers) else None,
        "answered_rate": math.fsum(t.answered_rate for t in teachers),
        "demand": math.fsum(demands) if demands else None,
        "queue": sum(t.queue for t in teachers),
        "starved": starved_part(students),
        "starved_s": math.fsum(s.starved_s for s in students),
        "jobs": sorted(jobs),
        "problems": list(listing.problems),
    }


def service_detail(name: str, listing: Listing, jobs: Iterable[str] = ()) -> Json:
    """The service with its teachers, each with its students, and its students, each with its starvation."""
    users = {
        teacher: sorted(s.student for s in listing.students.values() if teacher in s.teachers)
        for teacher in listing.teachers
    }
    return {
        **service_row(name, listing, jobs),
        "teacher_records": [{**to_dict(t), "students": users[n]} for n, t in sorted(listing.teachers.items())],
        "student_records": [to_dict(s) for _, s in sorted(listing.students.items())],
    }


def all_services(snapshot: Snapshot) -> list[Json]:
    """The services that have teachers, students or jobs."""
    return service_rows(snapshot.services, _serving_jobs(snapshot))


def find_service(snapshot: Snapshot, name: str) -> Json:
    """One of them. Raises ApiError 404."""
    jobs = _serving_jobs(snapshot).get(name, [])
    if name not in snapshot.services and not jobs:
        raise ApiError(404, f"there is no service {name}", "service")
    return service_detail(name, snapshot.services.get(name, Listing()), jobs)


def _serving_jobs(snapshot: Snapshot) -> dict[str, list[str]]:
    """Names of the jobs that serve and have not ended, by service."""
    found: dict[str, list[str]] = {}
    for job in snapshot.jobs.values():
        service = job.spec.value.service
        if service is not None and not (job.status is not None and job.status.value.phase.terminal):
            found.setdefault(service, []).append(job.name)
    return found
