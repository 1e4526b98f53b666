"""JSON schemas of tools, written by whoever serves them: what can't be checked is left to those."""

from __future__ import annotations

from collections.abc import Mapping

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError

from hansard_server.agents import bounded_schemas
from hansard_server.agents.api import Json
from hansard_server.agents.bounded_schemas import NotApplicable, TooMuchWork
from hansard_server.agents.json_text import dump_json

SCHEMA_MAX_BYTES = 256 * 1024
SCHEMA_MAX_DEPTH = 64
STEPS_MAX = 20_000
"""Keywords of a schema that are looked at in one check; each takes microseconds."""
CHECK_MAX_S = 0.5
"""Of the thread's own time: a check keeps all others waiting."""


class BadSchema(ValueError):  # noqa: N818 - reads as what it is
    """The schema can't be used; the message says why."""


def check_schema(schema: Mapping[str, Json]) -> None:
    """Return when arguments can be checked against the schema of a tool. Raises BadSchema."""
    if len(dump_json(schema)) > SCHEMA_MAX_BYTES:
        raise BadSchema(f"it is larger than {SCHEMA_MAX_BYTES:,} bytes")
    if schema.get("type") != "object":
        raise BadSchema("it is not that of an object")
    _check_parts(schema, 1)
    try:
        Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError) as error:
        reason = error.message[:300] if isinstance(error, SchemaError) else "nested too deeply"
        raise BadSchema(f"it is no JSON schema: {reason}") from None


def find_errors(value: Json, schema: Mapping[str, Json]) -> list[ValidationError]:
    """Return how the value breaks the schema, in the order of the paths.

    Raises BadSchema when it takes more than STEPS_MAX steps or CHECK_MAX_S to tell, and when the
    schema can't be applied.
    """
    try:
        errors = bounded_schemas.find_errors(schema, value, max_steps=STEPS_MAX, max_s=CHECK_MAX_S)
    except (TooMuchWork, NotApplicable) as error:
        raise BadSchema(str(error)) from None
    return sorted(errors, key=lambda error: list(map(str, error.path)))


def _check_parts(part: Json, depth: int) -> None:
    """Raise BadSchema for what can't be checked by what stands in the schema alone."""
    if depth > SCHEMA_MAX_DEPTH:
        raise BadSchema(f"it is nested deeper than {SCHEMA_MAX_DEPTH} levels")
    if isinstance(part, list):
        for item in part:
            _check_parts(item, depth + 1)
    if not isinstance(part, dict):
        return
    _check_keywords(part)
    for value in part.values():
        _check_parts(value, depth + 1)


def _check_keywords(part: Mapping[str, Json]) -> None:
    for name in ("$ref", "$dynamicRef"):
        reference = part.get(name)
        if isinstance(reference, str) and not reference.startswith("#"):
            raise BadSchema(f"it refers to {reference[:100]!r}, which is not in it")
