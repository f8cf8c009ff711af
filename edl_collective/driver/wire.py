"""Authenticated frames between a JobClient's proxy and the driver of a job.

Both sides prove that they hold the job's driver key (challenge and response over fresh nonces, bound to the driver's
epoch) before either parses anything. Each frame then carries a MAC over its sequence number and a digest of its data,
under a key of this connection and direction: what is forged, repeated, reordered or cut is an error that ends the
connection. Payloads are msgpack of typed messages, never pickle. Frames are not encrypted: rendezvous keys are
addresses, not secrets.
"""

import asyncio
import hashlib
import hmac
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from edl_collective.coord.auth import ClusterKey
from edl_collective.messages import DriverMessage, Message, ProxyMessage

#: a rendezvous of 1,024 workers has 140 MB of keys, sent in tables of a few MB
MAX_FRAME_BYTES = 32 * 1024 * 1024
#: what the other side may leave unread before it is cut off; it reconnects and asks again
MAX_UNSENT_BYTES = 256 * 1024 * 1024
HANDSHAKE_TIMEOUT_S = 5.0

_MAGIC = b"EDLdrv1\n"
_NONCE_BYTES = 32
_PROOF_BYTES = 32
_MAC_BYTES = 16
_DIGEST_BYTES = 32
_EPOCH = struct.Struct(">Q")
_HEAD = struct.Struct(">IB")
_COMPRESSED = 1
_COMPRESS_FROM_BYTES = 1024


class WireError(Exception):
    """Base of the errors of this connection; after any of them it is closed."""


class HandshakeError(WireError):
    """Raised when the other side does not prove in time that it holds the key of this job."""


class FrameError(WireError):
    """Raised when a frame is forged, repeated, out of order, cut short, too large or not a known message."""


class Closed(WireError):
    """Raised when the other side has ended the connection between two frames."""


def driver_key(key: ClusterKey, job: str) -> bytes:
    """The key that the driver of `job` and the proxies share."""
    return key.derive("driver", job)


@dataclass(frozen=True, slots=True)
class Body:
    """An encoded message, ready to be sent on several connections."""

    flags: int
    data: bytes
    #: of data, worked out once however many connections it is sent on
    digest: bytes


def encode(message: Message) -> Body:
    """`message` as msgpack, compressed when that can pay. Raises FrameError beyond MAX_FRAME_BYTES."""
    data = msgspec.msgpack.encode(message)
    if len(data) > MAX_FRAME_BYTES:
        raise FrameError(f"a {type(message).__name__} of {len(data)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    if len(data) < _COMPRESS_FROM_BYTES:
        return Body(0, data, _digest(data))
    packed = zlib.compress(data, 1)
    return Body(_COMPRESSED, packed, _digest(packed))


In = TypeVar("In")


class Channel(Generic[In]):
    """An authenticated connection on which messages of type In arrive."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decoder: msgspec.msgpack.Decoder[In],
        send_key: bytes,
        receive_key: bytes,
    ) -> None:
        self._reader, self._writer, self._decoder = reader, writer, decoder
        self._send_key, self._receive_key = send_key, receive_key
        self._sent = self._received = 0

    def send(self, message: Message) -> None:
        """Queue one message; never blocks."""
        self.send_body(encode(message))

    def send_body(self, body: Body) -> None:
        """Queue one encoded message; cuts the connection if the other side has not read for too long."""
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self.abort()
            return
        head = _HEAD.pack(len(body.data), body.flags)
        self._writer.writelines((head, body.data, _mac(self._send_key, self._sent, head, body.digest)))
        self._sent += 1

    async def receive(self) -> In:
        """The next message. Raises Closed at a clean end, FrameError for anything that is not the next frame."""
        head = await self._read(_HEAD.size, at_start=True)
        size, flags = _HEAD.unpack(head)
        if size > MAX_FRAME_BYTES or flags & ~_COMPRESSED:
            raise FrameError(f"a frame of {size} bytes with flags {flags} is not one of ours")
        data = await self._read(size)
        mac = await self._read(_MAC_BYTES)
        if not hmac.compare_digest(mac, _mac(self._receive_key, self._received, head, _digest(data))):
            raise FrameError(f"frame {self._received} is forged, repeated or out of order")
        self._received += 1
        try:
            return self._decoder.decode(_inflate(data) if flags & _COMPRESSED else data)
        except msgspec.MsgspecError as error:
            raise FrameError(f"frame {self._received - 1} holds no known message: {error}") from error

    async def _read(self, size: int, *, at_start: bool = False) -> bytes:
        try:
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            if at_start and not error.partial:
                raise Closed("the other side ended the connection") from error
            raise FrameError(
                f"the connection ended {size - len(error.partial)} bytes before the end of a frame"
            ) from error
        except OSError as error:
            raise Closed(f"the connection broke: {error}") from error

    def abort(self) -> None:
        """End the connection now, unsent messages lost."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Send what is queued, then end the connection."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return  # the other side was faster


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _mac(key: bytes, sequence: int, head: bytes, digest: bytes) -> bytes:
    message = sequence.to_bytes(8, "big") + head + digest  # all of fixed length
    return hashlib.blake2b(message, key=key, digest_size=_MAC_BYTES).digest()


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, MAX_FRAME_BYTES)
    except zlib.error as error:
        raise FrameError(f"a frame does not decompress: {error}") from error
    if not inflater.eof:
        raise FrameError(f"a frame holds more than {MAX_FRAME_BYTES} bytes or is cut short")
    return plain


def _derive(key: bytes, purpose: bytes, transcript: bytes) -> bytes:
    return hmac.digest(key, purpose + transcript, hashlib.sha256)


async def accept(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, epoch: int
) -> Channel[ProxyMessage]:
    """The driver's side of the handshake. Raises HandshakeError; the caller closes the writer then."""
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            theirs = await _nonce(reader)
            ours = os.urandom(_NONCE_BYTES)
            transcript = _EPOCH.pack(epoch) + theirs + ours
            writer.write(_MAGIC + ours + _EPOCH.pack(epoch) + _derive(key, b"driver", transcript))
            proof = await reader.readexactly(_PROOF_BYTES)
    except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
        raise HandshakeError(f"no handshake within {HANDSHAKE_TIMEOUT_S:g} s: {error!r}") from error
    if not hmac.compare_digest(proof, _derive(key, b"proxy", transcript)):
        raise HandshakeError("a peer does not hold the key of this job")
    decoder: msgspec.msgpack.Decoder[ProxyMessage] = msgspec.msgpack.Decoder(ProxyMessage)
    send, receive = _derive(key, b"from driver", transcript), _derive(key, b"from proxy", transcript)
    return Channel(reader, writer, decoder, send, receive)


async def connect(host: str, port: int, key: bytes, epoch: int) -> Channel[DriverMessage]:
    """Connect to the driver of `epoch`. Raises HandshakeError, also when another epoch answers there; OSError."""
    async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host, port)
    try:
        return await _greet(reader, writer, key, epoch)
    except BaseException:
        writer.transport.abort()
        raise


async def _greet(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, epoch: int
) -> Channel[DriverMessage]:
    ours = os.urandom(_NONCE_BYTES)
    writer.write(_MAGIC + ours)
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            theirs = await _nonce(reader)
            answered = _EPOCH.unpack(await reader.readexactly(_EPOCH.size))[0]
            proof = await reader.readexactly(_PROOF_BYTES)
    except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
        raise HandshakeError(f"the driver did not answer the handshake: {error!r}") from error
    transcript = _EPOCH.pack(answered) + ours + theirs
    if not hmac.compare_digest(proof, _derive(key, b"driver", transcript)):
        raise HandshakeError("what listens there does not hold the key of this job")
    if answered != epoch:
        raise HandshakeError(f"the driver there has epoch {answered}, not {epoch}")
    writer.write(_derive(key, b"proxy", transcript))
    decoder: msgspec.msgpack.Decoder[DriverMessage] = msgspec.msgpack.Decoder(DriverMessage)
    send, receive = _derive(key, b"from proxy", transcript), _derive(key, b"from driver", transcript)
    return Channel(reader, writer, decoder, send, receive)


async def _nonce(reader: asyncio.StreamReader) -> bytes:
    if await reader.readexactly(len(_MAGIC)) != _MAGIC:
        raise HandshakeError("a peer does not speak the driver protocol")
    return await reader.readexactly(_NONCE_BYTES)
