"""What a student's three processes say to one another about batches, one datagram each. [pure]

DataLoader workers and the trainer post batches to the IO process; it answers the trainer. A message is a msgpack
array; file descriptors that belong to a Post travel beside it (SCM_RIGHTS). No tensor bytes are in any of them: those
lie in shared memory, where a Part says.
"""

import math
from functools import lru_cache

import msgspec

from distill.errors import DistillError
from distill.oip import element_bytes
from distill.source import Teacher

#: bytes of the largest message; a slot's header holds one
LARGEST_BYTES = 3000
#: Post.slot of a batch that lies in memory of its own, whose descriptors come with the message
NO_SLOT = -1


class Part(msgspec.Struct, array_like=True, frozen=True):
    """A tensor of a batch, and where its bytes are."""

    name: str
    #: of the Open Inference Protocol
    datatype: str
    #: [batch, ...]
    shape: tuple[int, ...]
    #: from the begin of the slot, or of the descriptor
    offset: int
    #: which of the message's descriptors, for NO_SLOT
    descriptor: int = 0

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * element_bytes(self.datatype)


class Post(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """A batch wants predictions. They go behind `room`, in the slot or in descriptor 0."""

    seq: int
    slot: int
    rows: int
    room: int
    parts: tuple[Part, ...]


class Go(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """The teachers were checked: what is sent, and what an answer must be."""

    #: names of the Parts that are inputs of the teacher
    feeds: tuple[str, ...]
    model: str | None = None
    model_hash: str | None = None
    #: shape of a row of each output, None in it for any size
    row_shapes: dict[str, tuple[int | None, ...]] = {}


class Cancel(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Nobody waits for sequence numbers below this one any more; answered by Cancelled."""

    below: int


class Abandon(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Nobody waits for this one any more; answered by Abandoned, unless a Done was sent before."""

    seq: int


class Stop(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """End."""


Request = Post | Go | Cancel | Abandon | Stop


class Done(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """The predictions of a batch are where the parts say."""

    seq: int
    outputs: tuple[Part, ...]
    teacher: str
    latency_s: float


class Result(msgspec.Struct, array_like=True, frozen=True):
    """What of a Done is the same for many batches; written into the slot of one, with the rest beside it."""

    outputs: tuple[Part, ...]
    teacher: str


class Look(msgspec.Struct, array_like=True, frozen=True, tag=16):
    """The batch that the trainer waits for is answered in its slot."""


class GaveUp(msgspec.Struct, array_like=True, frozen=True, tag=12):
    """A batch will not be answered; `kind` names the error class of distill.errors."""

    seq: int
    kind: str
    reason: str


class Cancelled(msgspec.Struct, array_like=True, frozen=True, tag=13):
    """From now on nothing is written to slots of sequence numbers below this one."""

    below: int


class Abandoned(msgspec.Struct, array_like=True, frozen=True, tag=14):
    """From now on nothing is written for this one."""

    seq: int


class Status(msgspec.Struct, array_like=True, frozen=True, tag=15):
    """Sent at the start, and when one of these changes."""

    teachers: tuple[tuple[str, str, str | None, str | None], ...]
    #: why no teacher can be expected to answer, and since when (monotonic clock); None while one can
    why_none: str | None = None
    none_since_s: float | None = None
    #: requests that were sent again after a failure, and that a second teacher was asked besides; once a second
    retried: int = 0
    hedged: int = 0

    def as_teachers(self) -> list[Teacher]:
        """Whom the source names now."""
        return [Teacher(*fields) for fields in self.teachers]


Answer = Done | Look | GaveUp | Cancelled | Abandoned | Status

_ENCODER = msgspec.msgpack.Encoder()
_REQUESTS = msgspec.msgpack.Decoder(Request)
_RESULTS = msgspec.msgpack.Decoder(Result)
_ANSWERS = msgspec.msgpack.Decoder(Answer)


class MessageTooLarge(DistillError):
    """Raised when a batch has so many tensors that their places do not fit into one message."""


def encode(message: Request | Answer | Result) -> bytes:
    """The bytes of a message. Raises MessageTooLarge for a Post that no slot header holds."""
    data = _ENCODER.encode(message)
    if isinstance(message, Post) and len(data) > LARGEST_BYTES:
        raise MessageTooLarge(
            f"the places of {len(message.parts)} tensors take {len(data)} bytes and {LARGEST_BYTES} are there: "
            "name fewer of the batch's items in ins="
        )
    return data


def decode_request(data: bytes | memoryview) -> Request:
    request: Request = _REQUESTS.decode(data)
    return request


def decode_answer(data: bytes | memoryview) -> Answer:
    answer: Answer = _ANSWERS.decode(data)
    return answer


@lru_cache(64)
def decode_result(data: bytes) -> Result:
    result: Result = _RESULTS.decode(data)
    return result
