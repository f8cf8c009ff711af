"""Prints the hosts of an external job for horovodrun; scripts/discover_hosts.sh says how it is used.

Asked every second, so it imports little: no click, no httpx.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import quote

from edl_collective.coord.errors import CoordError
from edl_collective.coord.key_file import key_file, load_key

RETRY_S = 0.5
TIMEOUT_S = 5.0


def main() -> int:
    """The exit status: 0 with the hosts printed, 1 when nobody can tell, 2 for bad input."""
    job = os.environ.get("EDL_JOB", "")
    server = os.environ.get("EDL_SERVER", "http://127.0.0.1:8180").rstrip("/")
    if not job:
        return _complain("EDL_JOB is not set: give the name of the job", 2)
    if not server.startswith(("http://", "https://")):
        return _complain(f"EDL_SERVER is {server!r}: give http://host:port", 2)
    try:
        wait_s = float(os.environ.get("EDL_DISCOVERY_WAIT_S", "10"))
        token = os.environ.get("EDL_TOKEN") or load_key(key_file(None, os.environ)).api_token
        tls = _tls(os.environ) if server.startswith("https:") else None
    except (ValueError, CoordError) as error:
        return _complain(str(error), 2)
    url = f"{server}/api/v1/jobs/{quote(job, safe='')}/hosts"
    return _print_hosts(url, token, wait_s, tls)


def _tls(environ: Mapping[str, str]) -> ssl.SSLContext:
    from edl_collective.coord import tls

    ca = environ.get("EDL_TLS_CA")
    return tls.client_context_of(ca) if ca else tls.client_context(load_key(key_file(None, environ)))


def _print_hosts(url: str, token: str, wait_s: float, tls: ssl.SSLContext | None) -> int:
    deadline = time.monotonic() + wait_s
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310  checked above
    while True:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=tls) as answer:  # noqa: S310
                hosts = json.load(answer)["hosts"]
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return _complain(str(json.load(error).get("error", error)), 1)
            problem = str(error)
        except OSError as error:
            problem = f"no JobServer answers at {url}: {error}"
        else:
            for row in hosts:
                print(f"{row['host']}:{row['slots']}")
            return 0
        if time.monotonic() + RETRY_S > deadline:
            return _complain(problem, 1)
        time.sleep(RETRY_S)


def _complain(text: str, status: int) -> int:
    print(f"discover_hosts: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
