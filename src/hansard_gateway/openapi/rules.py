"""The rules of buf.validate as constraints of JSON Schema, where that can say them."""

from __future__ import annotations

from typing import Any, Final

from google.api import field_behavior_pb2

from buf.validate import validate_pb2

Schema = dict[str, Any]

_NO_NUL: Final = "^[^\\u0000]*$"


def rules_of(field: Any) -> Any:
    """Return the field's rules."""
    extension: Any = validate_pb2.field
    return field.GetOptions().Extensions[extension]


def is_required(field: Any) -> bool:
    """Tell whether a request without the field is refused."""
    behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    rules = rules_of(field)
    needed = rules.required or rules.string.min_len > 0 or (rules.repeated.min_items > 0)
    return bool(field_behavior_pb2.REQUIRED in behaviors or (needed and not may_be_zero(field)))


def may_be_zero(field: Any) -> bool:
    """Tell whether the rules leave an empty value alone."""
    return bool(rules_of(field).ignore == validate_pb2.IGNORE_IF_ZERO_VALUE)


def of_string(field: Any) -> Schema:
    """Return the constraints of a string."""
    rules = rules_of(field).string
    schema: Schema = {}
    if rules.HasField("min_len"):
        schema["minLength"] = rules.min_len
    if rules.HasField("max_len"):
        schema["maxLength"] = rules.max_len
    if rules.HasField("pattern"):
        schema["pattern"] = rules.pattern
    elif rules.not_contains == "\0":
        schema["pattern"] = _NO_NUL
    allowed = getattr(rules, "in")
    if allowed:
        schema["enum"] = list(allowed)
    return schema


def of_number(field: Any) -> Schema:
    """Return the constraints of a number."""
    rules = rules_of(field)
    kind = rules.WhichOneof("type")
    if kind not in {"int32", "int64", "uint32", "uint64", "double", "float"}:
        return {}
    numbers = getattr(rules, kind)
    schema: Schema = {}
    for name, keyword in (
        ("gte", "minimum"),
        ("gt", "exclusiveMinimum"),
        ("lte", "maximum"),
        ("lt", "exclusiveMaximum"),
    ):
        if numbers.HasField(name):
            schema[keyword] = getattr(numbers, name)
    return schema


def of_list(field: Any) -> Schema:
    """Return the constraints of a list, but for those of its items."""
    rules = rules_of(field).repeated
    schema: Schema = {}
    if rules.HasField("min_items"):
        schema["minItems"] = rules.min_items
    if rules.HasField("max_items"):
        schema["maxItems"] = rules.max_items
    if rules.unique:
        schema["uniqueItems"] = True
    allowed = list(getattr(rules.items.string, "in"))
    if allowed:
        schema["items"] = {"type": "string", "enum": allowed}
    return schema


def of_map(field: Any) -> Schema:
    """Return the constraints of a map, but for those of its values."""
    rules = rules_of(field).map
    schema: Schema = {}
    if rules.HasField("max_pairs"):
        schema["maxProperties"] = rules.max_pairs
    if rules.keys.string.HasField("pattern"):
        schema["propertyNames"] = {"pattern": rules.keys.string.pattern}
    return schema
