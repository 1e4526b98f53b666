"""JSON as agents exchange it: text in the record, Python values in between."""

from __future__ import annotations

import json
from typing import NoReturn

from google.protobuf import struct_pb2

from hansard_server.agents.api import Json

_EXACT_WHOLE_NUMBERS = 2**53


class NotJson(ValueError):  # noqa: N818 - reads as what it says
    """The text is not JSON, or more than a program can take in."""


def parse_json(text: str) -> Json:
    """Return the value of a JSON text. Raises NotJson: for NaN and infinities too."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error) or "nested too deeply") from error


def dump_json(value: Json) -> str:
    """Return the value as JSON on one line, well-formed as UTF-8.

    Raises NotJson when it holds something that JSON has not.
    """
    try:
        return well_formed(
            json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise NotJson(str(error)) from error


def struct_to_json(struct: struct_pb2.Struct) -> dict[str, Json]:
    """Return the object; whole numbers as int, since a Struct knows only doubles."""
    return {name: value_to_json(value) for name, value in struct.fields.items()}


def value_to_json(value: struct_pb2.Value) -> Json:
    """Return one value of a Struct."""
    match value.WhichOneof("kind"):
        case "struct_value":
            return struct_to_json(value.struct_value)
        case "list_value":
            return [value_to_json(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            exact = number.is_integer() and abs(number) < _EXACT_WHOLE_NUMBERS
            return int(number) if exact else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def well_formed(text: str) -> str:
    """Return the text with what UTF-8 can't hold (lone surrogates) as question marks."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def cut_utf8(text: str, max_bytes: int) -> str:
    """Return the longest beginning of the text that takes at most `max_bytes` as UTF-8."""
    if len(text) * 4 <= max_bytes:
        return text
    data = text[:max_bytes].encode("utf-8", "replace")
    return data[:max_bytes].decode("utf-8", "ignore")


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is not JSON")
