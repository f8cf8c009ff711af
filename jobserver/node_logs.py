"""Logs of workers, fetched from the JobClients that have them.

Invariant: where a node is stands in a record that others than its JobClient may have written, so what is sent there is
worth nothing to anybody else: a token for one log of one node.
"""

import http.client
from contextlib import closing
from urllib.parse import quote

from fastapi import Response

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.records import NodeRecord
from edl_collective.coord.tls import client_context
from jobserver.api_models import ApiError

LOG_TIMEOUT_S = 10.0
MAX_LOG_BYTES = 1024 * 1024
MAX_OFFSET_BYTES = 2**63 - 1


def fetch_log(key: ClusterKey, node: NodeRecord, job: str, worker: str, offset: int, limit: int) -> Response:
    """At most `limit` bytes of a log from `offset` on, and where the next read begins. Raises ApiError."""
    if not 0 <= offset <= MAX_OFFSET_BYTES:
        raise ApiError(422, f"offset is {offset}: it must be a number of bytes, at least 0", "offset")
    path = f"/logs/{quote(job)}/{quote(worker)}?offset={offset}&limit={min(max(limit, 1), MAX_LOG_BYTES)}"
    try:  # a record may hold an address that no host can have
        with closing(_connection(key, node)) as connection:
            token = key.log_token(node.node, job, worker)
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            body = answer.read(MAX_LOG_BYTES)
    except (OSError, ValueError, http.client.HTTPException) as error:
        text = f"the JobClient of node {node.node} at {node.address}:{node.port} does not answer: {error}"
        raise ApiError(502, text) from error
    if answer.status == 404:
        raise ApiError(404, f"node {node.node} has no such log")
    if answer.status != 200:
        raise ApiError(502, f"the JobClient of node {node.node} answered {answer.status} for the log")
    headers = {name: value for name, value in answer.getheaders() if name.lower().startswith("x-edl-")}
    return Response(body, media_type="text/plain; charset=utf-8", headers=headers)


def _connection(key: ClusterKey, node: NodeRecord) -> http.client.HTTPConnection:
    if node.tls:
        return http.client.HTTPSConnection(node.address, node.port, timeout=LOG_TIMEOUT_S, context=client_context(key))
    return http.client.HTTPConnection(node.address, node.port, timeout=LOG_TIMEOUT_S)
