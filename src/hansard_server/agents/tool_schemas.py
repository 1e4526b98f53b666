"""JSON schemas that are not ours: checked with bounded work, and without fetching anything."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import attrs
import re2
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from hansard_server.agents.api import Json
from hansard_server.agents.json_text import dump_json

SCHEMA_MAX_BYTES = 256 * 1024
SCHEMA_MAX_DEPTH = 64
STEPS_MAX = 20_000
"""Keywords of a schema that are looked at in one check; each takes microseconds."""

# As JSON schemas have it; RE2 has another form.
_UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]
_steps_left: ContextVar[int] = ContextVar("steps_left")
_NOTHING: Registry[Any] = Registry()
"""References lead nowhere but into the schema itself: the library would fetch others by itself."""


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

    Formats are not looked at, nor `unevaluated…`, nor patterns that RE2 does not know. Raises
    BadSchema when it takes more than STEPS_MAX steps to tell, and for references that lead nowhere.
    """
    token = _steps_left.set(STEPS_MAX)
    try:
        errors = list(_Validator(schema, registry=_NOTHING).iter_errors(value))
    except Unresolvable:
        raise BadSchema("it refers to what is not in it") from None
    except RecursionError:
        raise BadSchema("it refers to itself without end") from None
    finally:
        _steps_left.reset(token)
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


@functools.lru_cache(maxsize=256)
def _compile(pattern: str) -> Any:
    """Return the pattern, None for one that RE2 does not know (a look-ahead): it is not checked."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(_UNICODE_ESCAPE.sub(r"\\x{\1}", pattern), options)
    except re2.error:
        return None


def _spend(steps: int = 1) -> None:
    left = _steps_left.get() - steps
    if left < 0:
        raise BadSchema("it takes too long to check")
    _steps_left.set(left)


def _counted(keyword: _Keyword) -> _Keyword:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _spend()
        yield from keyword(validator, value, instance, schema) or ()

    return check


def _pattern(_: Any, pattern: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    compiled = _compile(pattern)
    if isinstance(instance, str) and compiled is not None and not compiled.search(instance):
        yield ValidationError(f"{instance[:100]!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Any, instance: Any, _: Any
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    for pattern, subschema in patterns.items():
        compiled = _compile(pattern)
        for name, value in instance.items():
            _spend()
            if compiled is not None and compiled.search(name):
                yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    known = schema.get("properties", {})
    patterns = [_compile(pattern) for pattern in schema.get("patternProperties", {})]
    _spend(len(instance))
    others = [
        name
        for name in instance
        if name not in known
        and not any(pattern is None or pattern.search(name) for pattern in patterns)
    ]
    if isinstance(allowed, dict):
        for name in others:
            yield from validator.descend(instance[name], allowed, path=name)
    elif not allowed and others:
        names = ", ".join(repr(name[:100]) for name in others[:5])
        yield ValidationError(f"there is no such property: {names}")


def _unique_items(_: Any, unique: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if unique and isinstance(instance, list):
        _spend(len(instance))
        if len({_canonical(item) for item in instance}) < len(instance):
            yield ValidationError("has an item twice")


def _canonical(value: Json) -> str:
    # Equal numbers are written alike: 1.0 is 1.
    return re.sub(r"\.0(?=[,\]}]|$)", "", dump_json(_sorted(value)))


def _sorted(value: Json) -> Json:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


_OURS: dict[str, _Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
}
# Left out: the library follows references for these without a keyword that could be counted.
_LEFT_OUT = {"unevaluatedItems", "unevaluatedProperties"}
_KEYWORDS: Mapping[str, Any] = Draft202012Validator.VALIDATORS
_Validator: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {
        name: _counted(_OURS.get(name, keyword))
        for name, keyword in _KEYWORDS.items()
        if name not in _LEFT_OUT
    }
    | {name: _counted(lambda *_: None) for name in _LEFT_OUT},
)


def _evolve(self: Any, **changes: Any) -> Any:
    # The library's own would let `$schema` choose a validator without our bounds.
    fields = [field for field in attrs.fields(_Validator) if field.init]
    kept = {field.alias: getattr(self, field.name) for field in fields}
    return _Validator(**{**kept, **changes})


_Validator.evolve = _evolve
