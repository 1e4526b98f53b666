"""JSON schemas that callers bring: checked when they come, and applied with bounded work.

Regular expressions are RE2, which takes linear time; no reference leads out of the schema; and a
check that takes too many steps, or too long, is given up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from itertools import islice
from typing import Any

import re2
import referencing
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing.jsonschema import DRAFT202012

from hansard_server.agents.api import Json
from hansard_server.agents.json_text import NotJson, check_json, parse_json

SCHEMA_MAX_LEVELS = 64
SUBSCHEMAS_MAX = 2_000
_STEPS_MAX = 200_000
_CHECK_MAX_S = 2.0
"""Of the thread's own time."""
_FAULTS_SHOWN = 5
_FAULT_MAX_CHARACTERS = 300


class UnusableSchema(ValueError):  # noqa: N818 - reads as what it says
    """The text is no JSON schema that this module applies; the message begins with the place."""


class TooMuchWork(Exception):  # noqa: N818 - reads as what it says
    """The check was given up: it would take too long."""


# Reading a schema ---------------------------------------------------------------------------------


def read_schema(text: str) -> Mapping[str, Json]:
    """Return the schema that a text holds. Raises UnusableSchema."""
    try:
        check_json(text)
        schema = parse_json(text)
    except NotJson as error:
        raise UnusableSchema(f"is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UnusableSchema("must be an object")
    for count, (path, subschema) in enumerate(_walk(schema, "#", 1), 1):
        if count > SUBSCHEMAS_MAX:
            raise UnusableSchema(f"has more than {SUBSCHEMAS_MAX:,} subschemas")
        _check_keywords(path, subschema)
    root = {name: value for name, value in schema.items() if name not in {"$id", "$schema"}}
    _check_references(root)
    return root


_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SINGLES = frozenset(
    {"additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"}
)
_REFUSED = frozenset({"$dynamicRef", "$recursiveRef", "unevaluatedItems", "unevaluatedProperties"})
_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_COUNTS = frozenset(
    f"{least}{what}" for least in ("min", "max") for what in ("Items", "Length", "Properties")
) | {"minContains", "maxContains"}
_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})


def _walk(schema: Json, path: str, level: int) -> Iterator[tuple[str, dict[str, Json]]]:
    """Yield the schema and all in it, each with its place, as far as they are objects."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise UnusableSchema(f"{path}: must be an object, true or false")
    if level > SCHEMA_MAX_LEVELS:
        raise UnusableSchema(f"{path}: is nested deeper than {SCHEMA_MAX_LEVELS} levels")
    yield path, schema
    for keyword, value in schema.items():
        place = f"{path}/{keyword}"
        if keyword in _SINGLES:
            yield from _walk(value, place, level + 1)
        elif keyword in _MAPS:
            for name, inner in _expect(value, dict, "an object", place).items():
                yield from _walk(inner, f"{place}/{name}", level + 2)
        elif keyword in _LISTS:
            for index, inner in enumerate(_expect(value, list, "a list", place)):
                yield from _walk(inner, f"{place}/{index}", level + 2)


def _expect(value: Json, kind: type, words: str, place: str) -> Any:
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UnusableSchema(f"{place}: must be {words}")
    return value


def _check_keywords(path: str, schema: Mapping[str, Json]) -> None:
    for keyword, value in schema.items():
        place = f"{path}/{keyword}"
        if keyword in _REFUSED or (keyword == "$id" and path != "#"):
            raise UnusableSchema(f"{place}: is not supported")
        if keyword in _COUNTS:
            if _expect(value, int, "a whole number", place) < 0:
                raise UnusableSchema(f"{place}: must not be negative")
        elif keyword in _NUMBERS or keyword == "multipleOf":
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise UnusableSchema(f"{place}: must be a number")
            if keyword == "multipleOf" and value <= 0:
                raise UnusableSchema(f"{place}: must be greater than 0")
        else:
            _check_keyword(keyword, value, place)


def _check_keyword(keyword: str, value: Json, place: str) -> None:  # noqa: C901, PLR0912
    match keyword:
        case "type":
            _check_type(value, place)
        case "enum":
            _expect(value, list, "a list", place)
        case "required":
            _check_names(value, place)
        case "dependentRequired":
            for name, names in _expect(value, dict, "an object", place).items():
                _check_names(names, f"{place}/{name}")
        case "uniqueItems":
            _expect(value, bool, "true or false", place)
        case "pattern":
            _compiled(_expect(value, str, "a text", place), place)
        case "patternProperties":
            for pattern in value:
                _compiled(pattern, place)
        case "$anchor":
            _expect(value, str, "a text", place)
        case "$ref":
            if not _expect(value, str, "a text", place).startswith("#"):
                raise UnusableSchema(f"{place}: leads out of the schema: {value[:100]!r}")
        case _:
            # Words for people, and keywords that nobody checks here.
            pass


def _check_type(value: Json, place: str) -> None:
    kinds = value if isinstance(value, list) else [value]
    if not kinds or not all(isinstance(kind, str) and kind in _TYPES for kind in kinds):
        raise UnusableSchema(f"{place}: must be of {', '.join(sorted(_TYPES))}")


def _check_names(value: Json, place: str) -> None:
    if not all(isinstance(name, str) for name in _expect(value, list, "a list", place)):
        raise UnusableSchema(f"{place}: must be a list of texts")


def _check_references(schema: Mapping[str, Json]) -> None:
    resolver = _registry(schema).resolver()
    for path, subschema in _walk(schema, "#", 1):
        if "$ref" not in subschema:
            continue
        try:
            target = resolver.lookup(subschema["$ref"]).contents
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it leads nowhere
            raise UnusableSchema(f"{path}/$ref: there is no such place") from None
        if not isinstance(target, dict | bool):
            raise UnusableSchema(f"{path}/$ref: there is no schema at that place")


def _registry(schema: Mapping[str, Json]) -> referencing.Registry[Any]:
    # Without a way to retrieve anything: what is not here is nowhere.
    empty: referencing.Registry[Any] = referencing.Registry()
    resource: referencing.Resource[Any] = DRAFT202012.create_resource(dict(schema))
    registry: referencing.Registry[Any] = empty.with_resource("", resource)
    return registry


def _compiled(pattern: str, place: str) -> None:
    try:
        _regex(pattern)
    except re2.error as error:
        raise UnusableSchema(f"{place}: is no RE2 expression: {error}") from None


@lru_cache(maxsize=256)
def _regex(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


# Applying it --------------------------------------------------------------------------------------


def find_faults(schema: Mapping[str, Json], value: Json) -> list[str]:
    """Return what is wrong with a value, each with its place; none when it fits the schema.

    `schema` comes from `read_schema`. Raises TooMuchWork. Takes up to some seconds of CPU time.
    """
    token = _budget.set(_Budget())
    try:
        validator = _Validator(schema, registry=_registry(schema))
        errors = list(islice(validator.iter_errors(value), _FAULTS_SHOWN))
    except RecursionError:
        raise TooMuchWork("it is nested too deeply") from None
    finally:
        _budget.reset(token)
    return [
        f"{error.json_path}: {error.message[:_FAULT_MAX_CHARACTERS]}"
        for error in sorted(errors, key=lambda error: error.json_path)
    ]


class _Budget:
    """What is left of one check."""

    def __init__(self) -> None:
        self._steps = _STEPS_MAX
        self._until = time.thread_time() + _CHECK_MAX_S

    def spend(self) -> None:
        self._steps -= 1
        if self._steps < 0 or time.thread_time() > self._until:
            raise TooMuchWork("it would take too long")


_budget: ContextVar[_Budget] = ContextVar("budget")

_Faults = Iterator[ValidationError]
_Keyword = Callable[[Any, Any, Any, Any], Any]


def _counted(keyword: _Keyword) -> _Keyword:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> _Faults:
        _budget.get().spend()
        yield from keyword(validator, value, instance, schema) or ()

    return check


def _pattern(validator: Any, pattern: str, instance: Any, _schema: Any) -> _Faults:
    if validator.is_type(instance, "string") and not _regex(pattern).search(instance):
        yield ValidationError(f"does not match {pattern[:100]!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _schema: Any) -> _Faults:
    if not validator.is_type(instance, "object"):
        return
    for pattern, subschema in patterns.items():
        for name, value in instance.items():
            _budget.get().spend()
            if _regex(pattern).search(name):
                yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> _Faults:
    if not validator.is_type(instance, "object"):
        return
    known = schema.get("properties", {})
    patterns = [_regex(pattern) for pattern in schema.get("patternProperties", {})]
    for name, value in instance.items():
        _budget.get().spend()
        if name in known or any(pattern.search(name) for pattern in patterns):
            continue
        if allowed is False:
            yield ValidationError(f"there may be no {name[:100]!r}")
        else:
            yield from validator.descend(value, allowed, path=name)


def _unique_items(validator: Any, unique: bool, instance: Any, _schema: Any) -> _Faults:  # noqa: FBT001
    if not unique or not validator.is_type(instance, "array"):
        return
    seen: set[str] = set()
    for item in json.loads(json.dumps(instance), parse_float=_plain_number):
        text = json.dumps(item, sort_keys=True)
        if text in seen:
            yield ValidationError("has the same item twice")
            return
        seen.add(text)


def _plain_number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() else number


def _refused(_validator: Any, _value: Any, _instance: Any, _schema: Any) -> _Faults:
    raise TooMuchWork("it has a keyword that is not supported")


_KEYWORDS: dict[str, _Keyword] = {
    **Draft202012Validator.VALIDATORS,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
    **dict.fromkeys(_REFUSED, _refused),
}
_Validator: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {name: _counted(keyword) for name, keyword in _KEYWORDS.items()}
)
