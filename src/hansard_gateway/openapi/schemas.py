"""Messages of the contract as JSON Schema, as the reader takes and the writer shows them."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

from google.api import field_behavior_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from hansard_gateway.naming import (
    ALWAYS_SHOWN,
    DEFAULT_MEMBERS,
    discriminated,
    enum_names,
    in_milliseconds,
    is_raw,
    json_name,
    own_fields,
)
from hansard_gateway.openapi.comments import comments
from hansard_gateway.openapi.rules import (
    Schema,
    is_required,
    may_be_zero,
    of_list,
    of_map,
    of_number,
    of_string,
)

REF: Final = "#/components/schemas/"
_INTEGERS: Final = {
    **dict.fromkeys((5, 15, 17), ("int32", -(1 << 31), (1 << 31) - 1)),
    **dict.fromkeys((3, 16, 18), ("int64", -(1 << 63), (1 << 63) - 1)),
    **dict.fromkeys((13, 7), ("int64", 0, (1 << 32) - 1)),
    **dict.fromkeys((4, 6), ("int64", 0, (1 << 64) - 1)),
}
# null is the same as absent, whatever the name.
_ONLY_ABSENT: Final[Schema] = {"type": "null"}
_BOOL, _STRING, _BYTES, _ENUM, _FLOATS = 8, 9, 12, 14, frozenset({1, 2})
# What clients of the documented API need as an object, whatever it was.
_OBJECTS: Final = frozenset(
    {"hansard.v1.ToolInput.tool_input_json", "hansard.v1.ToolOutput.tool_output_json"}
)


class Mode(Enum):
    """What a schema is of; the value ends the schema's name."""

    REPLY = ""
    REQUEST = "Input"
    CHANGE = "Change"


class Schemas:
    """Collects the schemas that an API document refers to.

    Attributes:
        components: by name.
    """

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}

    def ref(self, descriptor: Any, mode: Mode) -> Schema:
        """Return a reference to the message's schema, which is made at its first use."""
        name = descriptor.name + mode.value
        if name not in self.components:
            self.components[name] = {}
            self.components[name] = self.message(descriptor, mode)
        return {"$ref": REF + name}

    def message(
        self, descriptor: Any, mode: Mode, *, without: frozenset[str] = frozenset()
    ) -> Schema:
        """Return the schema of a message; `without` names fields that stand elsewhere."""
        special = _SPECIAL.get(descriptor.full_name) if mode is Mode.REPLY else None
        own = [field for field in own_fields(descriptor) if field.name not in without]
        schema = self._object(own, mode)
        flattened = discriminated(descriptor)
        if flattened is not None:
            schema = self._flattened(schema, flattened, mode)
        if special:
            schema = {"anyOf": [schema, special]}
        said = comments().get(descriptor.full_name)
        return {"description": said, **schema} if said else schema

    def _object(self, fields: list[Any], mode: Mode) -> Schema:
        schema: Schema = {
            "type": "object",
            "properties": {json_name(field): self.field(field, mode) for field in fields},
        }
        required = [json_name(field) for field in fields if self._required(field, mode)]
        if required:
            schema["required"] = required
        if mode is not Mode.REPLY:
            schema["additionalProperties"] = _ONLY_ABSENT
        return schema

    def _required(self, field: Any, mode: Mode) -> bool:
        if mode is Mode.CHANGE:
            return False
        if mode is Mode.REQUEST:
            return is_required(field)
        always = field.full_name in ALWAYS_SHOWN or field.name == "metadata"
        return always or not (field.has_presence or (field.enum_type and not field.is_repeated))

    def _flattened(self, outer: Schema, oneof: Any, mode: Mode) -> Schema:
        variants = []
        default = DEFAULT_MEMBERS.get(oneof.full_name)
        for member in oneof.fields:
            inner = self.message(member.message_type, mode)
            said = comments().get(member.full_name)
            kind = {"const": member.name, **({"description": said} if said else {})}
            # A message whose own oneof is flattened does not stand inside another's.
            variant: Schema = {
                "type": "object",
                "title": member.name,
                "properties": {"type": kind, **outer["properties"], **inner["properties"]},
            }
            needed = [*outer.get("required", ()), *inner.get("required", ())]
            if default is None or mode is Mode.REPLY:
                needed.insert(0, "type")
            if needed:
                variant["required"] = needed
            if mode is not Mode.REPLY:
                variant["additionalProperties"] = _ONLY_ABSENT
                if default is not None:
                    kind = {"enum": [member.name, None]} if default == member.name else kind
                    variant["properties"]["type"] = kind
            variants.append(variant)
        return variants[0] if len(variants) == 1 else {"anyOf": variants}

    def field(self, field: Any, mode: Mode) -> Schema:
        """Return the schema of a field's value; in requests null stands for absent."""
        schema = self._any(field, mode)
        said = comments().get(field.full_name)
        if said:
            schema = {"description": said, **schema}
        behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        if field_behavior_pb2.OUTPUT_ONLY in behaviors and mode is not Mode.REPLY:
            return {"description": said or "", "readOnly": True}
        needed = mode is Mode.REQUEST and is_required(field)
        return schema if mode is Mode.REPLY or needed else nullable(schema)

    def _any(self, field: Any, mode: Mode) -> Schema:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = self.value(field.message_type.fields_by_name["value"], mode)
            if mode is not Mode.REPLY:
                value = nullable(value)
            bounds = of_map(field) if mode is not Mode.REPLY else {}
            return {"type": "object", "additionalProperties": value, **bounds}
        if field.is_repeated:
            bounds = of_list(field) if mode is not Mode.REPLY else {}
            return {"type": "array", "items": self.value(field, mode), **bounds}
        return self.value(field, mode)

    def value(self, field: Any, mode: Mode) -> Schema:
        """Return the schema of one value of the field."""
        if field.message_type is not None:
            return self._message_value(field, mode)
        request = mode is not Mode.REPLY
        if is_raw(field):
            return {"type": "object"} if field.full_name in _OBJECTS and not request else {}
        return _scalar_input(field) if request else _scalar(field)

    def _message_value(self, field: Any, mode: Mode) -> Schema:
        full_name = field.message_type.full_name
        if full_name == Duration.DESCRIPTOR.full_name and in_milliseconds(field):
            kind: Any = "integer" if mode is Mode.REPLY else ["integer", "string"]
            return {"type": kind, "format": "int64"}
        known = _KNOWN.get(full_name)
        return dict(known) if known is not None else self.ref(field.message_type, mode)


def _scalar(field: Any) -> Schema:
    if field.type in _INTEGERS:
        return {"type": "integer", "format": _INTEGERS[field.type][0]}
    if field.type == _ENUM:
        return {"type": "string", "enum": list(enum_names(field.enum_type).values())}
    if field.type == _BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    if field.type in _FLOATS:
        return {"type": "number"}
    return {"type": "boolean"} if field.type == _BOOL else {"type": "string"}


def _scalar_input(field: Any) -> Schema:
    schema = _scalar(field)
    if field.type in _INTEGERS:
        _, least, most = _INTEGERS[field.type]
        bounds = {"minimum": least, "maximum": most, **of_number(field)}
        return {**schema, "type": ["integer", "string"], **bounds, "pattern": _DIGITS}
    if field.type in _FLOATS:
        return {**schema, **of_number(field)}
    bounds = of_string(field) if field.type == _STRING else {}
    if bounds and may_be_zero(field):
        return {"anyOf": [{"const": ""}, {**schema, **bounds}]}
    return {**schema, **bounds}


def nullable(schema: Schema) -> Schema:
    """Return the schema with null beside it."""
    if "enum" in schema:
        return {**schema, "type": [schema["type"], "null"], "enum": [*schema["enum"], None]}
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    if isinstance(schema.get("type"), list):
        return {**schema, "type": [*schema["type"], "null"]}
    if "$ref" in schema or "anyOf" in schema:
        said = {"description": schema["description"]} if "description" in schema else {}
        inner = {name: value for name, value in schema.items() if name != "description"}
        return {**said, "anyOf": [inner, {"type": "null"}]}
    return schema


_DIGITS: Final = "^-?[0-9]+$"
_KNOWN: Final[dict[str, Schema]] = {
    Struct.DESCRIPTOR.full_name: {"type": "object"},
    Value.DESCRIPTOR.full_name: {},
    ListValue.DESCRIPTOR.full_name: {"type": "array"},
    Timestamp.DESCRIPTOR.full_name: {"type": "string", "format": "date-time"},
    Duration.DESCRIPTOR.full_name: {"type": "string", "pattern": "^-?[0-9]+([.][0-9]+)?s$"},
    "google.rpc.Status": {
        "type": "object",
        "properties": {
            "code": {"type": "string"},
            "messages": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["code", "messages"],
    },
}
# As clients of the documented API see an artifact in a message.
_SPECIAL: Final[dict[str, Schema]] = {
    "hansard.v1.MessagePart": {
        "type": "object",
        "title": "artifact as text",
        "properties": {
            "type": {"const": "text"},
            "content": {"type": "string"},
            "artifact": {"$ref": f"{REF}ArtifactReference"},
        },
        "required": ["type", "content", "artifact"],
    },
    "hansard.v1.Event": {
        "type": "object",
        "title": "deleted",
        "properties": {"id": {"type": "string"}, "deleted_at": {"type": "string"}},
        "required": ["id", "deleted_at"],
    },
}
