"""Strategies of hostile messages, made from their descriptors."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_LEVELS = 4

_STRINGS = st.one_of(
    st.sampled_from(
        [
            *("", "a", "s", "a\n", "\0", "..", "*", "name", "metadata", "x" * 300, "(a+)+$", "["),
            *("tool_configurations", "tool_configurations.t", "hansard/extractive", "\U0010ffff"),
            *("\u202e", "é" * 255, "'; DROP TABLE agents; --", "%00", "${session.metadata.x}"),
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
_FLOATS = st.sampled_from(
    [0.0, -0.0, 1.5, 2.0**53, -(2.0**53), 2.0**53 - 1, 1e308, math.nan, math.inf, -math.inf, 5e-324]
)
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_INT32: st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31), 1000, 1001]),
    FieldDescriptor.CPPTYPE_UINT32: st.sampled_from([0, 1, 2**32 - 1]),
    FieldDescriptor.CPPTYPE_INT64: st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 2**53, 10**12]),
    FieldDescriptor.CPPTYPE_UINT64: st.sampled_from([0, 1, 2**64 - 1]),
    FieldDescriptor.CPPTYPE_ENUM: st.sampled_from([0, 1, 2, 99, 2**31 - 1, -1]),
    FieldDescriptor.CPPTYPE_DOUBLE: _FLOATS,
    FieldDescriptor.CPPTYPE_FLOAT: _FLOATS,
}


def hostile(descriptor: Descriptor, levels: int = _LEVELS) -> st.SearchStrategy[Message]:
    """Return messages of the type with values that somebody may not have thought of."""

    @st.composite
    def make(draw: st.DrawFn) -> Message:
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if draw(st.booleans()):
                _fill(draw, message, field, levels)
        return message

    return make()


def hostile_bytes(descriptor: Descriptor) -> st.SearchStrategy[bytes]:
    """Return the bytes of hostile messages: as they are, cut, or with bytes changed."""

    @st.composite
    def make(draw: st.DrawFn) -> bytes:
        raw = bytearray(draw(hostile(descriptor)).SerializeToString())
        how = draw(st.sampled_from(["whole", "whole", "whole", "cut", "changed", "more"]))
        if how == "cut":
            raw = raw[: draw(st.integers(0, len(raw)))]
        elif how == "changed" and raw:
            for _ in range(draw(st.integers(1, 3))):
                raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
        elif how == "more":
            raw += draw(st.binary(max_size=20))
        return bytes(raw)

    return make()


def _fill(draw: st.DrawFn, message: Any, field: FieldDescriptor, levels: int) -> None:
    kind = field.message_type
    count = draw(st.integers(0, 3)) if field.is_repeated else 1
    if kind is not None and kind.GetOptions().map_entry:
        value = kind.fields_by_name["value"].message_type
        entries = getattr(message, field.name)
        for _ in range(count if levels else 0):
            entries[draw(_STRINGS)].CopyFrom(draw(hostile(value, levels - 1)))
        return
    for _ in range(count):
        if kind is not None:
            if levels:
                part = draw(hostile(kind, levels - 1))
                if field.is_repeated:
                    getattr(message, field.name).append(part)
                else:
                    getattr(message, field.name).CopyFrom(part)
            continue
        scalar = draw(_scalar(field))
        if field.is_repeated:
            getattr(message, field.name).append(scalar)
        else:
            setattr(message, field.name, scalar)


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=40)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _STRINGS
    return _SCALARS[field.cpp_type]
