"""Single values between JSON (or a query's text) and the fields of messages."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from hansard_gateway.errors import invalid
from hansard_gateway.json_text import Digits
from hansard_gateway.naming import enum_names, in_milliseconds

_WHOLE: Final = re.compile(r"-?[0-9]+\Z")
_DIGITS_MAX: Final = 64
_STRUCT_MAX_DEPTH: Final = 32
_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})\Z"
)
_DURATION: Final = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,9})?s\Z")
_MILLISECONDS_MAX: Final = 315_576_000_000_000
_INVALID_METADATA: Final = "invalid_metadata"

# The largest whole number of each type: 32 or 64 bits, with or without a sign.
_RANGES: Final = {
    kind: (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    for kinds, bits, signed in (
        ((5, 15, 17), 32, True),
        ((3, 16, 18), 64, True),
        ((13, 7), 32, False),
        ((4, 6), 64, False),
    )
    for kind in kinds
}


def to_field(field: Any, value: Any, path: str) -> Any:
    """Return the JSON value as the field takes it; not for messages. Raises HttpError."""
    if field.type in _RANGES:
        return to_whole(value, path, *_RANGES[field.type])
    convert = _CONVERT.get(field.type)
    if convert is None:
        raise invalid(path, "can't be given over HTTP")
    return convert(field, value, path)


def to_whole(value: Any, path: str, least: int, most: int) -> int:
    """Return a whole number, also from a string of digits. Raises HttpError."""
    # A number with a fraction of zero, or an exponent, is whole too.
    text = value if type(value) in {Digits, str} and len(value) <= _DIGITS_MAX else ""
    number: int | None = None
    if _WHOLE.match(text):
        number = int(text)
    elif type(value) is Digits and text:
        fraction = float(text)
        number = int(fraction) if fraction.is_integer() else None
    if number is None:
        raise invalid(path, "must be a whole number")
    if not least <= number <= most:
        raise invalid(path, f"must be between {least} and {most}")
    return number


def to_text(value: Any, path: str) -> str:
    """Return a string that UTF-8 can carry. Raises HttpError."""
    if type(value) is not str:
        raise invalid(path, "must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(path, "holds half of a surrogate pair, which is no text") from None
    return value


def fill_known(message: Any, field: Any, value: Any, path: str) -> bool:
    """Fill a message that has a JSON form of its own; False when it is none such."""
    fill = _FILL.get(type(message))
    if fill is None:
        return False
    fill(message, field, value, path)
    return True


def fill_struct(struct: Struct, value: Any, path: str, depth: int = 1) -> None:
    """Fill a Struct from a JSON object. Raises HttpError (invalid_metadata)."""
    if not isinstance(value, dict):
        raise invalid(path, "must be an object", code=_INVALID_METADATA)
    if depth > _STRUCT_MAX_DEPTH:
        raise invalid(path, "is nested too deeply", code=_INVALID_METADATA)
    struct.SetInParent()
    fields = struct.fields
    for key, each in value.items():
        _fill_value(fields[_free_text(key, path)], each, path, depth)


def _fill_value(target: Value, value: Any, path: str, depth: int) -> None:
    if value is None:
        target.null_value = 0  # type: ignore[assignment] # NULL_VALUE, by number
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, Digits):
        # What a double rounds, and what it can't hold, the server refuses.
        target.number_value = float(value)
    elif isinstance(value, str):
        target.string_value = _free_text(value, path)
    elif isinstance(value, dict):
        fill_struct(target.struct_value, value, path, depth + 1)
    else:
        if depth >= _STRUCT_MAX_DEPTH:
            raise invalid(path, "is nested too deeply", code=_INVALID_METADATA)
        target.list_value.SetInParent()
        for each in value:
            _fill_value(target.list_value.values.add(), each, path, depth + 1)


def _free_text(value: str, path: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        problem = "holds half of a surrogate pair, which is no text"
        raise invalid(path, problem, code=_INVALID_METADATA) from None
    return value


def _to_bool(_field: Any, value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(path, "must be true or false")
    return value


def _to_float(_field: Any, value: Any, path: str) -> float:
    number = float(value) if isinstance(value, Digits) else math.nan
    if not math.isfinite(number):
        raise invalid(path, "must be a number")
    return number


def _to_enum(field: Any, value: Any, path: str) -> int:
    names = enum_names(field.enum_type)
    for number, name in names.items():
        if type(value) is str and value == name:
            return number
    raise invalid(path, f"must be one of {', '.join(names.values())}")


def _to_bytes(_field: Any, value: Any, path: str) -> bytes:
    try:
        return base64.b64decode(to_text(value, path), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(path, "must be base64") from None


def _fill_timestamp(message: Timestamp, _field: Any, value: Any, path: str) -> None:
    text = to_text(value, path)
    problem = "must be a time such as 2026-01-31T12:00:00Z"
    if not _RFC3339.match(text):
        raise invalid(path, problem)
    try:
        message.FromJsonString(text.upper())
    except ValueError:
        raise invalid(path, problem) from None


def _fill_duration(message: Duration, field: Any, value: Any, path: str) -> None:
    if in_milliseconds(field):
        message.FromMilliseconds(to_whole(value, path, -_MILLISECONDS_MAX, _MILLISECONDS_MAX))
        message.SetInParent()
        return
    text = to_text(value, path)
    problem = "must be a duration such as 1.5s"
    if not _DURATION.match(text):
        raise invalid(path, problem)
    try:
        message.FromJsonString(text)
    except ValueError:
        raise invalid(path, problem) from None
    message.SetInParent()


def _fill_list(message: ListValue, _field: Any, value: Any, path: str) -> None:
    if not isinstance(value, list):
        raise invalid(path, "must be an array")
    for each in value:
        _fill_value(message.values.add(), each, path, 1)


_CONVERT: Final[dict[int, Callable[[Any, Any, str], Any]]] = {
    1: _to_float,
    2: _to_float,
    8: _to_bool,
    9: lambda _field, value, path: to_text(value, path),
    12: _to_bytes,
    14: _to_enum,
}
_FILL: Final[dict[type[Any], Callable[[Any, Any, Any, str], None]]] = {
    Struct: lambda message, _field, value, path: fill_struct(message, value, path),
    Value: lambda message, _field, value, path: _fill_value(message, value, path, 1),
    ListValue: _fill_list,
    Timestamp: _fill_timestamp,
    Duration: _fill_duration,
}
