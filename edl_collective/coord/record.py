"""What every record is, and its bytes: versioned JSON, under 64 KiB. [pure]

Unknown fields are ignored, so that an older reader survives a newer writer of the same schema; a newer schema is an
error. What records there are stands in edl_collective/coord/records.py.
"""

from typing import TypeVar

import msgspec

from edl_collective.coord.errors import RecordError, RecordTooLarge

MAX_RECORD_BYTES = 64 * 1024
SCHEMA = 1


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every record; `schema` rises when a reader of the old form would misunderstand the new one."""

    schema: int = SCHEMA


R = TypeVar("R", bound=Record)


def encode(record: Record, path: str = "") -> bytes:
    """JSON bytes of `record`. Raises RecordTooLarge beyond MAX_RECORD_BYTES."""
    data = msgspec.json.encode(record)
    if len(data) > MAX_RECORD_BYTES:
        raise RecordTooLarge(path, f"{len(data)} bytes; the bound is {MAX_RECORD_BYTES}")
    return data


def decode(data: bytes, record_type: type[R], path: str = "") -> R:
    """The record in `data`. Raises RecordError if it is not one of that type, or of a newer schema."""
    try:
        record = msgspec.json.decode(data, type=record_type)
    except msgspec.MsgspecError as error:
        raise RecordError(path, str(error)) from error
    if record.schema > SCHEMA:
        raise RecordError(path, f"schema {record.schema} was written by a newer EDL; this one reads up to {SCHEMA}")
    return record
