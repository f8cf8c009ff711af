#!/bin/sh
# Host discovery for `horovodrun --host-discovery-script`: prints "host:slots" for each host of the job's plan.
#
#   EDL_JOB       name of the job (kind external); required
#   EDL_SERVER    URL of a JobServer (default http://127.0.0.1:8180)
#   EDL_KEY_FILE  the cluster key (default ~/.edl/key)
#   EDL_DISCOVERY_WAIT_S  how long to go on trying while no JobServer answers (default 10)
#   EDL_PYTHON    the Python that has EDL installed (default python3)
#
# A job without slots yet: prints nothing and exits 0, which horovodrun takes for "no hosts now" and waits.
# No JobServer, or no such job: exits 1. horovodrun then keeps the hosts that it knows and asks again a second later;
# printing nothing with exit 0 would tell it that all hosts are gone. Only its very first question must not fail, so
# this script waits a while for a JobServer that is just starting.
set -eu
exec "${EDL_PYTHON:-python3}" -m jobserver.cli.discover
