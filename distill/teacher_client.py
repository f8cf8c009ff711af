"""A small synchronous client of one teacher, for checks and commands; students send through their IO process instead.

One keep-alive connection, one request at a time. Imports numpy and no torch. A request that meets a connection which
the server closed meanwhile is sent once more on a new one: an inference changes nothing, so twice is harmless.
"""

import contextlib
import http.client
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import numpy as np

from distill import oip
from distill.errors import ConfigError, ProtocolError, TeacherRefused, TeacherUnavailable

DEFAULT_TIMEOUT_S = 30.0
#: statuses below 500 that say "not now" instead of "never"
_LATER = frozenset({408, 425, 429})
_HINTS = {
    401: "; check the token (EDL_TEACHER_TOKEN)",
    403: "; check the token (EDL_TEACHER_TOKEN)",
    413: "; raise --max-body-mb of the teacher, or send fewer samples at once",
}

Array = np.ndarray[Any, np.dtype[Any]]


class TeacherClient:
    """Talks to the server at `url` (http(s)://host:port).

    Args:
        token: sent as bearer token.
        ca_file: certificates (PEM) that an https teacher's own must descend from; None: those of the system.
        timeout_s: how long a connect, or any pause of an answer, may last.

    All methods raise TeacherUnavailable when the teacher cannot be reached or is overloaded, TeacherRefused when it
    says no, and ProtocolError when what it says is not the protocol. Not for several threads at once.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca_file: str | Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"teacher {url!r}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or port is None or parts.path.strip("/"):
            raise ConfigError(f"teacher {url!r} must look like http://host:port or https://host:port")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._timeout_s = timeout_s
        self._connection = self._make(parts.scheme, parts.hostname, port, ca_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def abort(self) -> None:
        """From another thread: break off what is under way, which then raises TeacherUnavailable."""
        sock = self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def live(self) -> bool:
        """Whether it answers at all."""
        return self._is_fine("/v2/health/live")

    def ready(self, model: str | None = None) -> bool:
        """Whether it wants requests: the server, or one model of it."""
        return self._is_fine("/v2/health/ready" if model is None else f"{_path(model)}/ready")

    def models(self) -> tuple[str, ...]:
        """Names of the models that it serves; empty if it does not tell (the protocol does not ask for it)."""
        body = self._ask("GET", "/v2")[1]
        named = oip.decode_server(body).models
        return tuple(named)

    def metadata(self, model: str) -> oip.ModelMetadata:
        """What the model takes and gives."""
        return oip.decode_metadata(self._ask("GET", _path(model))[1])

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        *,
        parameters: Mapping[str, oip.Parameters] | None = None,
    ) -> tuple[dict[str, Array], oip.InferResponse]:
        """Ask for the outputs of one batch.

        Args:
            inputs: by name, C-contiguous or not, [batch, ...].
            outputs: names; None: all of the model's.
            parameters: by output, what is asked of it, such as {"top_k": 64}.

        Returns:
            The outputs by name, each an array of its own, and the head of the answer.
        """
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        heads = [oip.binary(name, oip.datatype_of(str(a.dtype)), a.shape) for name, a in arrays.items()]
        asked = parameters or {}
        wanted = [oip.WantedOutput(name, {"binary_data": True, **asked.get(name, {})}) for name in outputs or ()]
        request = oip.InferRequest(
            tuple(heads), tuple(wanted), parameters={} if wanted else {"binary_data_output": True}
        )
        head = oip.encode(request)
        parts: list[bytes | memoryview] = [head, *map(_bytes_of, arrays.values())]
        headers, body = self._ask("POST", f"{_path(model)}/infer", parts, {oip.HEADER_LENGTH: str(len(head))})
        return _decoded(headers, body)

    # ---- the connection ------------------------------------------------------------------------------------------

    def _make(self, scheme: str, host: str, port: int, ca_file: str | Path | None) -> http.client.HTTPConnection:
        if scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        try:
            context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"certificates cannot be read from {ca_file}: {error}") from error
        return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=context)

    def _is_fine(self, path: str) -> bool:
        try:
            self._ask("GET", path)
        except (TeacherRefused, TeacherUnavailable, ProtocolError):
            return False
        return True

    def _ask(
        self,
        method: str,
        path: str,
        parts: Sequence[bytes | memoryview] = (),
        headers: Mapping[str, str] | None = None,
    ) -> tuple[http.client.HTTPMessage, bytes]:
        """Headers and body of the answer to one request."""
        kept = self._connection.sock is not None
        try:
            try:
                return self._exchange(method, path, parts, headers or {})
            except (http.client.RemoteDisconnected, ConnectionError):
                self.close()
                if not kept:
                    raise
                return self._exchange(method, path, parts, headers or {})
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> TeacherRefused | TeacherUnavailable | ProtocolError:
        match error:
            case ssl.SSLCertVerificationError():
                return TeacherRefused(
                    f"the certificate of teacher {self.url} is not trusted: {error.verify_message}; "
                    "name the authority that signed it (ca_file)"
                )
            case http.client.RemoteDisconnected() | ConnectionResetError() | BrokenPipeError():
                return TeacherUnavailable(f"teacher {self.url} broke off: {error}")
            case OSError():
                return TeacherUnavailable(f"teacher {self.url} cannot be reached: {error}")
            case _:
                return ProtocolError(f"teacher {self.url} does not speak HTTP: {error!r}")

    def _exchange(
        self, method: str, path: str, parts: Sequence[bytes | memoryview], headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPMessage, bytes]:
        connection = self._connection
        connection.putrequest(method, path)
        for name, value in {**self._headers, **headers}.items():
            connection.putheader(name, value)
        if parts:
            connection.putheader("Content-Length", str(sum(map(len, parts))))
        connection.endheaders()
        self._send(parts)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status >= 400:
            raise _error(self.url, answer.status, body)
        return answer.headers, body

    def _send(self, parts: Sequence[bytes | memoryview]) -> None:
        try:
            for part in parts:
                self._connection.send(part)
        except (BrokenPipeError, ConnectionResetError):
            # It may have refused before it read all: its answer is then there to be read. If not, reading says so.
            return


def _bytes_of(array: Array) -> memoryview:
    """The bytes of a C-contiguous array, in place."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # numpy's stub lacks the buffer protocol


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _error(url: str, status: int, body: bytes) -> TeacherRefused | TeacherUnavailable:
    later = status >= 500 or status in _LATER
    text = f"teacher {url} answered {status}: {oip.decode_error(body)}{_HINTS.get(status, '')}"
    return TeacherUnavailable(text) if later else TeacherRefused(text)


def _decoded(headers: http.client.HTTPMessage, body: bytes) -> tuple[dict[str, Array], oip.InferResponse]:
    given = headers.get(oip.HEADER_LENGTH)
    length = len(body) if given is None else int(given) if given.isdecimal() else -1
    if not 0 <= length <= len(body):
        raise ProtocolError(f"{oip.HEADER_LENGTH} is {given!r} in an answer of {len(body)} bytes")
    response = oip.decode_response(memoryview(body)[:length], len(body) - length)
    places = oip.split(response.outputs)
    arrays = {
        tensor.name: _array(tensor, body, None if place is None else length + place[0])
        for tensor, place in zip(response.outputs, places, strict=True)
    }
    return arrays, response


def _array(tensor: oip.TensorHead, body: bytes, begin: int | None) -> Array:
    """The tensor's values in memory of its own."""
    dtype = np.dtype(oip.DATATYPES[tensor.datatype][1])
    if begin is None:
        return from_data(tensor)
    count = tensor.size_bytes // dtype.itemsize
    return np.frombuffer(body, dtype, count, begin).reshape(tensor.shape).copy()


def from_data(tensor: oip.TensorHead) -> Array:
    """A tensor whose values stand in its head, flat or nested. Raises ProtocolError."""
    dtype = np.dtype(oip.DATATYPES[tensor.datatype][1])
    try:
        return np.asarray(tensor.data, dtype).reshape(tensor.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise ProtocolError(
            f"the data of tensor {tensor.name!r} are not {tensor.datatype} of {list(tensor.shape)}: {error}"
        ) from error
