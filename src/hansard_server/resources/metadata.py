"""Free-form objects (metadata, parameters, argument overrides): what is kept, what is equal."""

from __future__ import annotations

import json
import math
import re

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct, Value

from hansard_server.domain.errors import InvalidMetadata
from hansard_server.domain.limits import Limits

_WHOLE_LIMIT = 2.0**53
_PLAIN_KEY = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")
_KEY_SHOWN_CHARACTERS = 64


def check_struct(struct: Struct, path: str, limits: Limits) -> None:
    """Do nothing, or raise InvalidMetadata with the path of the value that can't be kept.

    The object itself is level 1; each object or list inside another is one level more.
    """
    size = struct.ByteSize()
    if size > limits.metadata_max_bytes:
        raise InvalidMetadata.of_field(
            path, f"has {size} bytes serialized, {limits.metadata_max_bytes} are taken at most"
        )
    open_objects: list[tuple[str, Struct, int]] = [(path, struct, 1)]
    values: list[tuple[str, Value, int]] = []
    while open_objects or values:
        if values:
            where, value, level = values.pop()
        else:
            where, container, level = open_objects.pop()
            values.extend(
                (_join(where, key), value, level) for key, value in container.fields.items()
            )
            continue
        kind = value.WhichOneof("kind")
        if kind == "number_value":
            _check_number(value.number_value, where)
        elif kind == "struct_value":
            _check_depth(level + 1, where, limits)
            open_objects.append((where, value.struct_value, level + 1))
        elif kind == "list_value":
            _check_depth(level + 1, where, limits)
            values.extend(
                (f"{where}[{index}]", item, level + 1)
                for index, item in enumerate(value.list_value.values)
            )
        elif kind is None:
            raise InvalidMetadata.of_field(where, "has no value; null is one, unset is not")


def has_fields(stored: bytes, wanted: Struct) -> bool:
    """Tell whether each top-level field of `wanted` is equal, as JSON, in the serialized Struct."""
    try:
        fields = Struct.FromString(stored).fields
    except DecodeError:
        return False
    return all(key in fields and fields[key] == value for key, value in wanted.fields.items())


def _check_number(number: float, path: str) -> None:
    if not math.isfinite(number):
        raise InvalidMetadata.of_field(path, "must be a number: JSON has no NaN and no infinity")
    # From here on every number is whole, and whole numbers may have been rounded on their way.
    if abs(number) >= _WHOLE_LIMIT:
        raise InvalidMetadata.of_field(
            path, "must be below 2^53 in magnitude; keep larger whole numbers as strings"
        )


def _check_depth(level: int, path: str, limits: Limits) -> None:
    if level > limits.metadata_max_depth:
        raise InvalidMetadata.of_field(path, f"is deeper than {limits.metadata_max_depth} levels")


def _join(path: str, key: str) -> str:
    if _PLAIN_KEY.match(key):
        return f"{path}.{key}"
    return f"{path}[{json.dumps(key[:_KEY_SHOWN_CHARACTERS])}]"
