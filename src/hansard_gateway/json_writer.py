"""Messages of the contract as JSON, along their descriptors: ASCII, on one line, to the digit."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2

from hansard_gateway.json_text import to_line
from hansard_gateway.naming import (
    ALWAYS_SHOWN,
    DEFAULT_MEMBERS,
    HIDDEN_TOOLS,
    discriminated,
    enum_names,
    in_milliseconds,
    is_raw,
    json_name,
    own_fields,
)

Write = Callable[[Any], str]
# Writes members of an object, `"name":value` each, to the list.
WriteMembers = Callable[[Any, list[str]], None]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_MAX: Final = 253_402_300_799
_NANOS_PER_MS: Final = 1_000_000
# Clients require an object here.
_OBJECTS: Final = frozenset(
    {
        "hansard.v1.ToolInput.tool_input_json",
        "hansard.v1.ToolOutput.tool_output_json",
    }
)


def to_json(message: Message) -> str:
    """Return the message as a JSON object."""
    return "{" + ",".join(to_members(message)) + "}"


def to_members(message: Message) -> list[str]:
    """Return the members of the message's JSON object, `"name":value` each."""
    members: list[str] = []
    _writer(message.DESCRIPTOR)(message, members)
    return members


def member(name: str, value: Any) -> str:
    """Return a member of an object, from a value that is no message."""
    return f"{quote(name)}:{json.dumps(value, separators=(',', ':'))}"


@cache
def _writer(descriptor: Any) -> WriteMembers:
    special = _SPECIAL.get(descriptor.full_name)
    return special(descriptor) if special is not None else _plain_writer(descriptor)


def _plain_writer(descriptor: Any) -> WriteMembers:
    fields = [_field_writer(field) for field in own_fields(descriptor)]
    flattened = discriminated(descriptor)

    def write(message: Any, members: list[str]) -> None:
        for each in fields:
            each(message, members)
        if flattened is None:
            return
        kind = message.WhichOneof(flattened.name)
        if kind is not None:
            members.append(f'"type":"{kind}"')
            value = getattr(message, kind)
            _writer(value.DESCRIPTOR)(value, members)
        elif flattened.full_name in DEFAULT_MEMBERS:
            members.append(f'"type":"{DEFAULT_MEMBERS[flattened.full_name]}"')

    return write


def _field_writer(field: Any) -> WriteMembers:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map_writer(field)
    if field.is_repeated:
        return _list_writer(field)
    name, head, value = field.name, f'"{json_name(field)}":', _value_writer(field)
    # Clients of the documented API require metadata on artifacts.
    always = field.full_name in ALWAYS_SHOWN or field.name == "metadata"
    if field.has_presence and not always:

        def write_present(message: Any, members: list[str]) -> None:
            if message.HasField(name):
                members.append(head + value(getattr(message, name)))

        return write_present
    if field.enum_type is not None:

        def write_enum(message: Any, members: list[str]) -> None:
            if number := getattr(message, name):
                members.append(head + value(number))

        return write_enum

    def write_value(message: Any, members: list[str]) -> None:
        members.append(head + value(getattr(message, name)))

    return write_value


def _list_writer(field: Any) -> WriteMembers:
    name, head, value = field.name, f'"{json_name(field)}":', _value_writer(field)

    def write_list(message: Any, members: list[str]) -> None:
        members.append(f"{head}[{','.join(map(value, getattr(message, name)))}]")

    return write_list


def _map_writer(field: Any) -> WriteMembers:
    name, head = field.name, f'"{json_name(field)}":'
    value = _value_writer(field.message_type.fields_by_name["value"])

    def write_map(message: Any, members: list[str]) -> None:
        entries = sorted(getattr(message, name).items())
        members.append(f"{head}{{{','.join(f'{quote(str(k))}:{value(v)}' for k, v in entries)}}}")

    return write_map


def _value_writer(field: Any) -> Write:
    if field.message_type is not None:
        return _message_writer(field)
    if field.enum_type is not None:
        names = enum_names(field.enum_type)
        return lambda number: quote(names[number]) if number in names else str(number)
    if is_raw(field):
        return _object if field.full_name in _OBJECTS else _raw
    writers: dict[int, Write] = {
        field.TYPE_BOOL: lambda value: "true" if value else "false",
        field.TYPE_BYTES: lambda value: quote(base64.b64encode(value).decode()),
        field.TYPE_DOUBLE: _number,
        field.TYPE_FLOAT: _number,
        field.TYPE_STRING: quote,
    }
    return writers.get(field.type, str)


def _message_writer(field: Any) -> Write:
    full_name = field.message_type.full_name
    if full_name == Duration.DESCRIPTOR.full_name and in_milliseconds(field):
        return _milliseconds
    known = _KNOWN.get(full_name)
    if known is not None:
        return known
    return to_json


def _raw(text: str) -> str:
    return to_line(text) if text else "null"


def _object(text: str) -> str:
    """Return the JSON; what is no object in one, since clients refuse anything else there."""
    line = _raw(text)
    if line.lstrip(" \t").startswith("{"):
        return line
    return f'{{"value":{line}}}' if text else "{}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "null"
    return str(int(value)) if value.is_integer() else repr(value)


def _timestamp(value: Timestamp) -> str:
    if not 0 <= value.seconds <= _SECONDS_MAX:
        return quote(value.ToJsonString())
    at = _EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    return f'"{at.replace(tzinfo=None).isoformat(timespec="microseconds")}Z"'


def _milliseconds(value: Duration) -> str:
    return str(value.seconds * 1000 + value.nanos // _NANOS_PER_MS)


def _struct(value: Struct) -> str:
    return "{" + ",".join(f"{quote(k)}:{_free(v)}" for k, v in sorted(value.fields.items())) + "}"


def _list(value: ListValue) -> str:
    return f"[{','.join(map(_free, value.values))}]"


def _free(value: Value) -> str:
    kind = value.WhichOneof("kind")
    return _FREE[kind](getattr(value, kind)) if kind is not None else "null"


def _status(value: Any) -> str:
    info = error_details_pb2.ErrorInfo()
    for detail in value.details:
        detail.Unpack(info)
    reason = info.reason.lower() or "agent_processing_failed"
    return f'{{"code":{quote(reason)},"messages":[{quote(value.message)}]}}'


_FREE: Final[dict[str, Write]] = {
    "null_value": lambda _value: "null",
    "number_value": _number,
    "string_value": quote,
    "bool_value": lambda value: "true" if value else "false",
    "struct_value": _struct,
    "list_value": _list,
}
_KNOWN: Final[dict[str, Write]] = {
    Struct.DESCRIPTOR.full_name: _struct,
    Value.DESCRIPTOR.full_name: _free,
    ListValue.DESCRIPTOR.full_name: _list,
    Timestamp.DESCRIPTOR.full_name: _timestamp,
    Duration.DESCRIPTOR.full_name: lambda value: quote(value.ToJsonString()),
    "google.protobuf.FieldMask": lambda value: quote(value.ToJsonString()),
    # The details of a status are for programs that speak gRPC.
    "google.rpc.Status": _status,
}


def _message_part(descriptor: Any) -> WriteMembers:
    """An artifact appears as text, since clients know no other part, with all about it beside."""
    plain = _plain_writer(descriptor)

    def write(part: Any, members: list[str]) -> None:
        if part.WhichOneof("part") != "artifact":
            plain(part, members)
            return
        reference = part.artifact
        shown = reference.filename or reference.artifact_id
        members.append('"type":"text"')
        members.append(f'"content":{quote(shown)}')
        members.append(f'"artifact":{to_json(reference)}')

    return write


def _agent(descriptor: Any) -> WriteMembers:
    """Tools that clients do not know are left out, so that they can read the others."""
    plain = _plain_writer(descriptor)

    def write(agent: Any, members: list[str]) -> None:
        hidden = [
            name
            for name, tool in agent.tool_configurations.items()
            if tool.WhichOneof("tool") in HIDDEN_TOOLS
        ]
        if hidden:
            copy = type(agent)()
            copy.CopyFrom(agent)
            for name in hidden:
                del copy.tool_configurations[name]
            agent = copy
        plain(agent, members)

    return write


_SPECIAL: Final[dict[str, Callable[[Any], WriteMembers]]] = {
    "hansard.v1.MessagePart": _message_part,
    "hansard.v1.Agent": _agent,
}
