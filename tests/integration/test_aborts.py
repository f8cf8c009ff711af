"""A few of the random aborts of abort_soak.py; `scripts/soak.sh aborts` runs 300."""

import abort_soak
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


async def test_aborts_at_random_moments_crash_nothing_and_leak_no_descriptor() -> None:
    report = await abort_soak.soak(aborts=20, workers=3, seed=1)
    assert report.aborts == 20
    assert 0 < report.during_init < 20
    assert max(report.fds_last.values()) <= max(report.fds_first.values()) + 2
