"""The Open Inference Protocol (KServe v2) with the binary-tensor extension, as values and JSON. [pure]

Source: the KServe "Open Inference Protocol" (REST) and Triton's "Binary Tensor Data Extension". A message is a JSON
head, whose length stands in the HTTP header `Inference-Header-Content-Length`, followed by the bytes of its binary
tensors in the order of the head (little endian, row-major). Nothing here sends, receives or copies a tensor's bytes.

Invariant: what parses has tensors whose sizes agree with their shapes and with the length of the message.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import msgspec

from distill.errors import ProtocolError

#: HTTP header: bytes of the JSON head at the begin of a body that also holds binary tensors
HEADER_LENGTH = "Inference-Header-Content-Length"
#: `parameters` of a model's metadata and of each answer of a teacher server of ours; foreign servers have none
MODEL_HASH = "model_hash"

#: datatype of the protocol -> (bytes of an element, numpy's name). BYTES (strings) is not used: it has no fixed size.
DATATYPES: dict[str, tuple[int, str]] = {
    "BOOL": (1, "bool"),
    "UINT8": (1, "uint8"),
    "INT8": (1, "int8"),
    "UINT16": (2, "uint16"),
    "INT16": (2, "int16"),
    "UINT32": (4, "uint32"),
    "INT32": (4, "int32"),
    "UINT64": (8, "uint64"),
    "INT64": (8, "int64"),
    "FP16": (2, "float16"),
    "FP32": (4, "float32"),
    "FP64": (8, "float64"),
}
_NAMES = {numpy_name: datatype for datatype, (_, numpy_name) in DATATYPES.items()}

Parameters = dict[str, Any]


def datatype_of(numpy_name: str) -> str:
    """The protocol's name of a numpy (or torch) dtype such as "float16". Raises ProtocolError."""
    try:
        return _NAMES[numpy_name]
    except KeyError:
        raise ProtocolError(
            f"tensors of {numpy_name} have no datatype in the protocol: use one of {sorted(_NAMES)}"
        ) from None


def element_bytes(datatype: str) -> int:
    try:
        return DATATYPES[datatype][0]
    except KeyError:
        raise ProtocolError(f"datatype {datatype!r} is unknown: use one of {', '.join(DATATYPES)}") from None


class TensorSpec(msgspec.Struct, frozen=True):
    """An input or output as metadata declare it; -1 in `shape` is any size (the batch)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Parameters = {}


class ModelMetadata(msgspec.Struct, frozen=True):
    """Answer to GET /v2/models/<name>."""

    name: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    versions: tuple[str, ...] = ()
    platform: str = ""
    parameters: Parameters = {}


class ServerMetadata(msgspec.Struct, frozen=True):
    """Answer to GET /v2; `models` is ours alone: the protocol has no way to ask what a server serves."""

    name: str
    version: str = ""
    extensions: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


class TensorHead(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tensor of a message: binary when `parameters` say its size, else with its values in `data`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Parameters = {}
    data: list[Any] | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor, from its shape."""
        return math.prod(self.shape) * element_bytes(self.datatype)

    @property
    def binary_bytes(self) -> int | None:
        """Bytes after the head, None for a tensor whose values are in the head."""
        size: int | None = self.parameters.get("binary_data_size")
        return size


class WantedOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """An output that a request asks for; `parameters`: binary_data, and top_k of our own servers."""

    name: str
    parameters: Parameters = {}


class InferRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Head of POST /v2/models/<name>/infer. No `outputs`: all of the model's."""

    inputs: tuple[TensorHead, ...]
    outputs: tuple[WantedOutput, ...] = ()
    id: str = ""
    parameters: Parameters = {}


class InferResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """Head of the answer to an InferRequest."""

    model_name: str
    outputs: tuple[TensorHead, ...]
    model_version: str = ""
    id: str = ""
    parameters: Parameters = {}

    @property
    def model_hash(self) -> str | None:
        value: str | None = self.parameters.get(MODEL_HASH)
        return value


class ErrorAnswer(msgspec.Struct, frozen=True):
    """Body of every answer with a status from 400 on."""

    error: str


_Head = TypeVar("_Head", InferRequest, InferResponse, ModelMetadata, ServerMetadata)
Message = InferRequest | InferResponse
_ENCODER = msgspec.json.Encoder()
_REQUEST = msgspec.json.Decoder(InferRequest)
_RESPONSE = msgspec.json.Decoder(InferResponse)
_METADATA = msgspec.json.Decoder(ModelMetadata)
_SERVER = msgspec.json.Decoder(ServerMetadata)


def binary(name: str, datatype: str, shape: Sequence[int]) -> TensorHead:
    """Head of a tensor whose bytes follow."""
    bare = TensorHead(name, datatype, tuple(shape))
    return TensorHead(name, datatype, tuple(shape), {"binary_data_size": bare.size_bytes})


def encode(message: Message | ModelMetadata | ServerMetadata | ErrorAnswer) -> bytes:
    """The JSON of a head."""
    return _ENCODER.encode(message)


def decode_request(head: bytes | memoryview, body_bytes: int) -> InferRequest:
    """Parse the head of a request with `body_bytes` of tensors after it. Raises ProtocolError."""
    request = _decode(_REQUEST, head, "request")
    if not request.inputs:
        raise ProtocolError("the request has no inputs")
    _check_sizes(request.inputs, body_bytes)
    return request


def decode_response(head: bytes | memoryview, body_bytes: int) -> InferResponse:
    """Parse the head of an answer with `body_bytes` of tensors after it. Raises ProtocolError."""
    response = _decode(_RESPONSE, head, "answer")
    _check_sizes(response.outputs, body_bytes)
    return response


def decode_metadata(body: bytes | memoryview) -> ModelMetadata:
    """Parse a model's metadata. Raises ProtocolError."""
    return _decode(_METADATA, body, "metadata")


def decode_server(body: bytes | memoryview) -> ServerMetadata:
    """Parse a server's metadata. Raises ProtocolError."""
    return _decode(_SERVER, body, "metadata")


def decode_error(body: bytes) -> str:
    """The sentence of an error answer; what came instead if it is none."""
    try:
        return msgspec.json.decode(body, type=ErrorAnswer).error
    except msgspec.DecodeError:
        return body[:200].decode(errors="replace").strip() or "no reason given"


def split(tensors: Sequence[TensorHead]) -> list[tuple[int, int] | None]:
    """Begin and end of each tensor's bytes, from the end of the head; None for a tensor whose values are in it."""
    places: list[tuple[int, int] | None] = []
    begin = 0
    for tensor in tensors:
        if tensor.binary_bytes is None:
            places.append(None)
            continue
        places.append((begin, begin + tensor.binary_bytes))
        begin += tensor.binary_bytes
    return places


def _decode(
    decoder: msgspec.json.Decoder[_Head], text: bytes | memoryview, what: Literal["request", "answer", "metadata"]
) -> _Head:
    try:
        try:
            return decoder.decode(text)
        except msgspec.ValidationError:
            if what == "request":
                raise
            # Servers of another make (KServe, MLServer) write null for a field that they leave out.
            found: _Head = msgspec.convert(_without_nulls(msgspec.json.decode(text)), decoder.type)
            return found
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the {what} is not an Open Inference Protocol message: {error}") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _check_sizes(tensors: Sequence[TensorHead], body_bytes: int) -> None:
    total = 0
    for tensor in tensors:
        if any(size < 0 for size in tensor.shape):
            raise ProtocolError(
                f"tensor {tensor.name!r} has the shape {list(tensor.shape)}: sizes must not be negative"
            )
        expected = tensor.size_bytes
        given = tensor.binary_bytes
        if given is None:
            if tensor.data is None:
                raise ProtocolError(f"tensor {tensor.name!r} has neither data nor binary_data_size")
            continue
        if not isinstance(given, int) or isinstance(given, bool) or given != expected:
            raise ProtocolError(
                f"tensor {tensor.name!r} of {tensor.datatype} {list(tensor.shape)} has {expected} bytes, "
                f"its binary_data_size says {given!r}"
            )
        total += given
    if total != body_bytes:
        raise ProtocolError(f"the tensors have {total} bytes and {body_bytes} bytes follow the head")
