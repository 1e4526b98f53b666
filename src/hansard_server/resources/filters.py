"""What lists may be filtered by: a regular expression, metadata, `enabled`, time of creation."""

from __future__ import annotations

import re2
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from hansard_server.domain.errors import InvalidRequest
from hansard_server.domain.records import AgentRecord, SessionRecord
from hansard_server.resources.metadata import has_fields

# A pattern may take this much memory, and no caller's pattern is kept after its call.
_PATTERN_MAX_BYTES = 512 * 1024
_TIMESTAMP_MAX_S = 253_402_300_799
"""The end of the year 9999, the last that a Timestamp may be."""
_NANOS = 1_000_000_000


class RecordFilter:
    """The conditions of ListAgents and ListSessions that the database does not check."""

    def __init__(self, pattern: str, metadata: Struct | None, *, enabled: bool | None) -> None:
        """Take the conditions; what is empty or None is none. Raises InvalidRequest."""
        self._search = compile_pattern(pattern).search if pattern else None
        self._metadata = metadata if metadata is not None and metadata.fields else None
        self._enabled = enabled

    def matches(self, record: AgentRecord | SessionRecord) -> bool:
        """Tell whether the record keeps to all conditions."""
        if self._enabled is not None and record.enabled != self._enabled:
            return False
        if self._search is not None and not (
            self._search(record.name.encode()) or self._search(record.description.encode())
        ):
            return False
        return self._metadata is None or has_fields(record.metadata, self._metadata)


def compile_pattern(pattern: str) -> re2._Regexp:
    """Return the pattern, for UTF-8 bytes. Raises InvalidRequest for the field `filter`."""
    options = re2.Options()
    options.max_mem = _PATTERN_MAX_BYTES
    options.log_errors = False
    try:
        return re2.compile(pattern.encode(), options)
    except re2.error as error:
        raise InvalidRequest.of_field(
            "filter", f"is not a regular expression (RE2): {_reason(error)}"
        ) from None
    finally:
        # The library would keep the patterns of 128 callers, whatever their size.
        re2.purge()


def timestamp_us(field: str, timestamp: Timestamp) -> int:
    """Return the time in whole microseconds, rounded up. Raises InvalidRequest for the field."""
    if not 0 <= timestamp.nanos < _NANOS or not 0 <= timestamp.seconds <= _TIMESTAMP_MAX_S:
        raise InvalidRequest.of_field(field, "is not a time between the years 1970 and 9999")
    # Records have whole microseconds: at or after 1.5 µs, and before it, both mean 2 µs.
    return timestamp.seconds * 1_000_000 + -(-timestamp.nanos // 1_000)


def _reason(error: Exception) -> str:
    detail = error.args[0] if error.args else ""
    text = detail.decode(errors="replace") if isinstance(detail, bytes) else str(detail)
    return text[:100]
