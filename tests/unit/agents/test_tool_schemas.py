"""JSON schemas that are not ours: what is checked, and that no schema takes more than it should."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from hansard_server.agents.tool_schemas import BadSchema, check_schema, find_errors


def chain(length: int) -> dict[str, Any]:
    """Return a schema whose references double at each of so many levels."""
    levels = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(length)}
    return {"type": "object", "$ref": "#/$defs/d0", "$defs": {**levels, f"d{length}": {}}}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"properties": {"a": {"type": "integer"}}}, {"a": "x"}),
        ({"required": ["a"]}, {}),
        ({"properties": {"a": {}}, "additionalProperties": False}, {"b": 1}),
        ({"additionalProperties": {"type": "string"}}, {"b": 1}),
        ({"patternProperties": {"^x": {"type": "string"}}}, {"x1": 1}),
        (
            {"patternProperties": {"^x": {}}, "additionalProperties": False},
            {"x1": 1, "y": 2},
        ),
        ({"properties": {"a": {"pattern": "^[a-z]+$"}}}, {"a": "A"}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [{"x": 1, "y": 2}, {"y": 2, "x": 1}]}),
        ({"properties": {"a": {"pattern": "^[^\\u0000-\\u001f]+$"}}}, {"a": "\t"}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [1, 1.0]}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [1, True, "1", [1]]}),
        ({"properties": {"a": {"enum": [1, 2]}}}, {"a": 3}),
        ({"$defs": {"t": {"minimum": 3}}, "properties": {"a": {"$ref": "#/$defs/t"}}}, {"a": 1}),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, {"a": 1}),
    ],
)
def test_it_says_what_the_library_says(schema: Mapping[str, Any], value: Any) -> None:
    schema = {"type": "object", **schema}
    check_schema(schema)
    expected = [list(e.absolute_path) for e in Draft202012Validator(schema).iter_errors(value)]
    assert sorted(list(e.absolute_path) for e in find_errors(value, schema)) == sorted(expected)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array"},
        {},
        {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:1/schema"}}},
        {"type": "object", "properties": {"a": {"$ref": "file:///etc/passwd"}}},
        {"type": "object", "properties": {"a": {"$dynamicRef": "other#x"}}},
        {"type": "object", "properties": 5},
        {"type": "object", "description": "x" * 300_000},
    ],
)
def test_schema_that_can_not_be_used_is_refused(schema: Mapping[str, Any]) -> None:
    with pytest.raises(BadSchema):
        check_schema(schema)


def test_schema_that_is_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"not": schema}
    with pytest.raises(BadSchema):
        check_schema({"type": "object", **schema})


@pytest.mark.parametrize("dialect", [None, "http://json-schema.org/draft-07/schema#"])
def test_references_that_double_end_soon(dialect: str | None) -> None:
    schema = chain(60)
    if dialect is not None:
        for part in schema["$defs"].values():
            part["$schema"] = dialect
    check_schema(schema)
    with pytest.raises(BadSchema, match="too long"):
        find_errors({}, schema)


def test_reference_without_end_ends() -> None:
    with pytest.raises(BadSchema):
        find_errors({}, {"type": "object", "$ref": "#"})


def test_reference_that_leads_nowhere_is_refused() -> None:
    with pytest.raises(BadSchema):
        find_errors({}, {"type": "object", "$ref": "#/$defs/nothing"})


def test_nothing_is_fetched_when_the_schema_was_not_looked_at_before() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Whoever asked would be let in, and heard of.
        listener.settimeout(0.1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/schema"
        caught: list[BaseException] = []

        def check() -> None:
            try:
                find_errors({"a": 1}, {"properties": {"a": {"$ref": url}}})
            except BadSchema as error:
                caught.append(error)

        checking = threading.Thread(target=check, daemon=True)
        checking.start()
        with pytest.raises(TimeoutError):
            listener.accept()
        checking.join(60)
        assert len(caught) == 1


def test_pattern_that_is_not_known_is_left_to_the_server() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"pattern": "^(?=x)"}},
        "patternProperties": {"(?=x)": {"type": "integer"}},
        "additionalProperties": False,
    }
    check_schema(schema)
    assert find_errors({"a": "b", "c": 1}, schema) == []


def test_pattern_that_would_take_for_ever_does_not() -> None:
    schema = {"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}}
    check_schema(schema)
    assert len(find_errors({"a": "a" * 100_000 + "!"}, schema)) == 1


def test_many_faults_of_a_large_value_take_neither_time_nor_memory() -> None:
    schema = {"type": "object", "properties": {"a": {"allOf": [{"type": "string"}] * 4_000}}}
    check_schema(schema)
    begun = time.thread_time()
    tracemalloc.start()
    with pytest.raises(BadSchema, match="too long"):
        find_errors({"a": [["x" * 20] * 20_000]}, schema)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.thread_time() - begun < 10
    assert most < 50_000_000


def test_schema_whose_reference_leads_to_no_schema_is_refused_when_it_is_met() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/x"}},
        "x": {"minLength": "q", "pattern": ["("]},
    }
    check_schema(schema)
    assert find_errors({}, schema) == []
    with pytest.raises(BadSchema, match="can't be applied"):
        find_errors({"a": "b"}, schema)
