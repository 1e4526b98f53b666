"""JSON schemas that callers bring."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from hansard_server.agents.bounded_schemas import TooMuchWork
from hansard_server.agents.json_schema import (
    SCHEMA_MAX_LEVELS,
    UnusableSchema,
    find_faults,
    read_schema,
)


def faults(schema: dict[str, Any], value: Any) -> list[str]:
    return find_faults(read_schema(json.dumps(schema)), value)


ORDER = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://example.com/order",
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^o-[0-9]+$"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "uniqueItems": True},
    },
    "patternProperties": {"^x-": {"type": "integer"}},
    "additionalProperties": False,
    "required": ["id"],
    "$defs": {
        "line": {"$anchor": "line", "type": "object", "properties": {"n": {"minimum": 1}}},
    },
}


def test_a_value_fits_or_it_is_said_what_is_wrong() -> None:
    assert faults(ORDER, {"id": "o-1", "lines": [{"n": 1}, {"n": 2}], "x-a": 3}) == []
    assert faults(ORDER, {"lines": []}) == ["$: 'id' is a required property"]
    assert faults(ORDER, {"id": "1"}) == ["$.id: does not match '^o-[0-9]+$'"]
    assert faults(ORDER, {"id": "o-1", "lines": [{"n": 0}]}) == [
        "$.lines[0].n: 0 is less than the minimum of 1"
    ]
    assert faults(ORDER, {"id": "o-1", "x-a": "b", "y": 1}) == [
        "$: there may be no 'y'",
        "$['x-a']: 'b' is not of type 'integer'",
    ]
    assert faults(ORDER, {"id": "o-1", "lines": [{"n": 1}, {"n": 1.0}]}) == [
        "$.lines: has the same item twice"
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "must be an object"),
        ('{"a": NaN}', "is not JSON"),
        ('{"type": "text"}', "#/type: must be of array"),
        ('{"properties": []}', "#/properties: must be an object"),
        ('{"properties": {"a": 1}}', "#/properties/a: must be an object, true or false"),
        ('{"items": [{}]}', "#/items: must be an object, true or false"),
        ('{"anyOf": {}}', "#/anyOf: must be a list"),
        ('{"required": "a"}', "#/required: must be a list"),
        ('{"required": [1]}', "#/required: must be a list of texts"),
        ('{"dependentRequired": {"a": [1]}}', "#/dependentRequired/a: must be a list of texts"),
        ('{"minLength": -1}', "#/minLength: must not be negative"),
        ('{"minLength": true}', "#/minLength: must be a whole number"),
        ('{"maximum": "1"}', "#/maximum: must be a number"),
        ('{"multipleOf": 0}', "#/multipleOf: must be greater than 0"),
        ('{"uniqueItems": 1}', "#/uniqueItems: must be true or false"),
        ('{"enum": 1}', "#/enum: must be a list"),
        ('{"pattern": "(?=a)"}', "#/pattern: is no RE2 expression"),
        ('{"pattern": "("}', "#/pattern: is no RE2 expression"),
        ('{"patternProperties": {"(": {}}}', "#/patternProperties: is no RE2 expression"),
        ('{"$ref": "https://example.com/x"}', "#/$ref: leads out of the schema"),
        ('{"$ref": "file:///etc/passwd"}', "#/$ref: leads out of the schema"),
        ('{"$ref": "#/$defs/a"}', "#/$ref: there is no such place"),
        ('{"$ref": "#/title", "title": "x"}', "#/$ref: there is no schema at that place"),
        ('{"items": {"$id": "http://a"}}', "#/items/$id: is not supported"),
        ('{"unevaluatedProperties": false}', "#/unevaluatedProperties: is not supported"),
        ('{"$dynamicRef": "#a"}', "#/$dynamicRef: is not supported"),
    ],
)
def test_a_schema_that_can_not_be_used(text: str, words: str) -> None:
    with pytest.raises(UnusableSchema) as refused:
        read_schema(text)
    assert str(refused.value).startswith(words)


ELSEWHERE = {"$ref": "#/components/schemas/a"}


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"pattern": "("}, "#/components/schemas/a/pattern: is no RE2 expression"),
        ({"items": {"minLength": "1"}}, "#/components/schemas/a/items/minLength: must be a whole"),
        ({"unevaluatedItems": False}, "#/components/schemas/a/unevaluatedItems: is not supported"),
        ({"$ref": "#/components/schemas/b"}, "#/components/schemas/a/$ref: there is no such place"),
    ],
)
def test_what_a_reference_leads_to_is_checked_wherever_it_stands(
    part: dict[str, Any], words: str
) -> None:
    usable = {"$ref": "#/components", "components": {"minimum": 3, "schemas": {"a": {}}}}
    assert faults(usable, 2) == ["$: 2 is less than the minimum of 3"]
    with pytest.raises(UnusableSchema) as refused:
        faults({**ELSEWHERE, "components": {"schemas": {"a": part}}}, {})
    assert str(refused.value).startswith(words)


def nested(levels: int) -> str:
    return '{"not":' * (levels - 1) + "{}" + "}" * (levels - 1)


def test_depth_and_number_of_subschemas() -> None:
    assert len(find_faults(read_schema(nested(SCHEMA_MAX_LEVELS)), 1)) == 1
    with pytest.raises(UnusableSchema, match="nested deeper"):
        read_schema(nested(SCHEMA_MAX_LEVELS + 1))
    assert len(read_schema(json.dumps({"anyOf": [{}] * 1_999}))["anyOf"]) == 1_999
    with pytest.raises(UnusableSchema, match="2,000 subschemas"):
        read_schema(json.dumps({"anyOf": [{}] * 2_000}))


DOUBLED: dict[str, Any] = {
    "$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)}
    | {"d30": {"type": "string"}},
    "$ref": "#/$defs/d0",
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (DOUBLED, 1),
        ({"$ref": "#"}, {}),
        ({"items": {"anyOf": [{"const": n} for n in range(1_000)]}}, [999] * 100_000),
        ({"anyOf": [{"type": "string"}] * 1_990}, [["x" * 20] * 30_000]),
        ({"properties": {"a": {"$ref": "#"}}, "$ref": "#/properties/a"}, {}),
    ],
)
def test_what_would_take_too_long_is_given_up(schema: dict[str, Any], value: Any) -> None:
    begun = time.thread_time()
    with pytest.raises(TooMuchWork):
        faults(schema, value)
    assert time.thread_time() - begun < 30


def test_expressions_that_kill_others_take_no_time() -> None:
    evil = "(a+)+$"
    assert faults({"pattern": evil}, "a" * 50_000 + "!") == [f"$: does not match '{evil}'"]
    many = {"patternProperties": {evil: {"type": "null"}}, "additionalProperties": True}
    assert faults(many, {"a" * 50_000 + "!": 1}) == []


def test_a_dialect_inside_a_schema_brings_no_other_expressions() -> None:
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "(a+)+$"}
    assert len(faults({"properties": {"a": schema}}, {"a": "a" * 50_000 + "!"})) == 1


@pytest.mark.parametrize(
    ("items", "alike"),
    [
        ([1, True], False),
        (["1", 1], False),
        ([0, False], False),
        (["\ud800", "?"], False),
        ([math.inf, 1e308], False),
        ([[], {}], False),
        ([1, 1.0], True),
        ([{"a": 1, "b": [2.0]}, {"b": [2], "a": 1.0}], True),
        ([math.inf, math.inf], True),
    ],
)
def test_items_are_told_apart_as_json(items: list[Any], alike: bool) -> None:  # noqa: FBT001
    expected = ["$: has the same item twice"] if alike else []
    assert faults({"uniqueItems": True}, items) == expected


def test_many_equal_objects_are_found_at_once() -> None:
    items = [{"a": [n]} for n in range(50_000)]
    assert faults({"uniqueItems": True}, items) == []
    assert faults({"uniqueItems": True}, [*items, {"a": [3]}]) == ["$: has the same item twice"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "ab"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "x-c"]), inner, max_size=3)
    ),
    max_leaves=8,
)
SCHEMAS = st.recursive(
    st.booleans()
    | st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "string", "integer", "null"]),
            "pattern": st.sampled_from(["^a", "b$"]),
            "minimum": st.integers(-2, 2),
            "maxItems": st.integers(0, 2),
            "enum": st.lists(VALUES, max_size=2),
            "uniqueItems": st.booleans(),
            "required": st.lists(st.sampled_from(["a", "b"]), max_size=2),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
            "patternProperties": st.dictionaries(st.sampled_from(["^x-", "a"]), inner, max_size=2),
            "additionalProperties": inner,
            "items": inner,
            "prefixItems": st.lists(inner, max_size=2),
            "contains": inner,
            "not": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "propertyNames": inner,
        },
    ),
    max_leaves=6,
).filter(lambda schema: isinstance(schema, dict))


@given(SCHEMAS, VALUES)
def test_it_finds_what_the_library_finds(schema: dict[str, Any], value: Any) -> None:
    assert bool(faults(schema, value)) == (not Draft202012Validator(schema).is_valid(value))
