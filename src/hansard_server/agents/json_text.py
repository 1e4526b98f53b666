"""JSON as agents exchange it: text in the record, Python values in between."""

from __future__ import annotations

import json
import re
from itertools import accumulate, count
from operator import sub
from typing import NoReturn

from google.protobuf import struct_pb2

from hansard_server.agents.api import Json

JSON_MAX_DEPTH = 512
"""Objects and lists inside each other in one text of the record; the outermost is level 1."""
_EXACT_WHOLE_NUMBERS = 2**53
# One that has no end goes to the end of the text: each character is looked at once.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_BRACKETS_AT_ONCE = 16 * 1024
# Two more than nothing, and two less than two: a byte each, which are summed up in one sweep.
_STEPS = bytes.maketrans(b"[{]}", b"\2\2\0\0")


class NotJson(ValueError):  # noqa: N818 - reads as what it says
    """The text is not JSON, or more than a program can take in."""


def parse_json(text: str) -> Json:
    """Return the value of a JSON text. Raises NotJson: for NaN and infinities too."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise NotJson(str(error) or "nested too deeply") from error


def check_json(text: str) -> None:
    """Do nothing, or raise NotJson for a text that the record can't hold as JSON.

    Numbers may have any length, since nobody computes with them here.
    """
    if _depth(text) > JSON_MAX_DEPTH:
        raise NotJson(f"is nested deeper than {JSON_MAX_DEPTH} levels")
    try:
        json.loads(text, parse_constant=_refuse_constant, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise NotJson(f"is not JSON: see {where}") from None
    except NotJson as error:
        raise NotJson(f"is not JSON: {error}") from None


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


def _depth(text: str) -> int:
    """Return how many brackets are open at once at most; not less than that for what is no JSON."""
    opening = text.count("[") + text.count("{")
    if opening <= JSON_MAX_DEPTH:
        return opening
    bare = _STRING.sub("", text).encode("utf-8", "replace").translate(None, _NO_BRACKETS)
    steps = bare.translate(_STEPS)
    deepest = depth = 0
    # In pieces, between which other threads may run.
    for start in range(0, len(steps), _BRACKETS_AT_ONCE):
        piece = steps[start : start + _BRACKETS_AT_ONCE]
        # An opening bracket counts two and a closing one nothing: less one each, that is the depth.
        deepest = max(deepest, depth + max(map(sub, accumulate(piece), count(1))))
        depth += sum(piece) - len(piece)
    return deepest
