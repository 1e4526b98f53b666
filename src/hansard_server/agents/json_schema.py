"""JSON schemas that callers bring for answers: checked wholly when they come, and applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import re2
import referencing
from referencing.jsonschema import DRAFT202012

from hansard_server.agents.api import Json
from hansard_server.agents.bounded_schemas import compile_pattern, find_errors
from hansard_server.agents.json_text import NotJson, check_json, parse_json

SCHEMA_MAX_LEVELS = 64
SUBSCHEMAS_MAX = 2_000
_STEPS_MAX = 200_000
_CHECK_MAX_S = 2.0
"""Of the thread's own time."""
_FAULTS_SHOWN = 5


class UnusableSchema(ValueError):  # noqa: N818 - reads as what it says
    """The text is no JSON schema that this module applies; the message begins with the place."""


def read_schema(text: str) -> Mapping[str, Json]:
    """Return the schema that a text holds. Raises UnusableSchema."""
    try:
        check_json(text)
        schema = parse_json(text)
    except NotJson as error:
        raise UnusableSchema(f"is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UnusableSchema("must be an object")
    root = {name: value for name, value in schema.items() if name not in {"$id", "$schema"}}
    _check_all(root)
    return root


def find_faults(schema: Mapping[str, Json], value: Json) -> list[str]:
    """Return what is wrong with a value, each with its place; none when it fits the schema.

    `schema` comes from `read_schema`. Takes up to some seconds of CPU time.
    Raises TooMuchWork, NotApplicable.
    """
    errors = find_errors(
        schema, value, max_steps=_STEPS_MAX, max_s=_CHECK_MAX_S, max_errors=_FAULTS_SHOWN
    )
    return sorted(f"{error.json_path}: {error.message}" for error in errors)


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


def _check_all(root: dict[str, Json]) -> None:
    """Check every subschema, those too that only a reference tells from other JSON."""
    resolver = _registry(root).resolver()
    walk = _Walk()
    places: list[tuple[str, Json]] = [("#", root)]
    while places:
        place, part = places.pop()
        for path, subschema in walk.through(part, place, 1):
            _check_keywords(path, subschema)
            if "$ref" in subschema:
                reference = subschema["$ref"]
                places.append((reference, _find_target(resolver, path, reference)))


class _Walk:
    """A way through schemas that meets each once."""

    def __init__(self) -> None:
        self._met: set[int] = set()

    def through(self, schema: Json, path: str, level: int) -> Iterator[tuple[str, dict[str, Json]]]:
        """Yield the schema and all in it, each with its place, as far as they are objects."""
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise UnusableSchema(f"{path}: must be an object, true or false")
        if level > SCHEMA_MAX_LEVELS:
            raise UnusableSchema(f"{path}: is nested deeper than {SCHEMA_MAX_LEVELS} levels")
        if id(schema) in self._met:
            return
        self._met.add(id(schema))
        if len(self._met) > SUBSCHEMAS_MAX:
            raise UnusableSchema(f"has more than {SUBSCHEMAS_MAX:,} subschemas")
        yield path, schema
        for place, inner, levels in _parts(schema, path):
            yield from self.through(inner, place, level + levels)


def _parts(schema: dict[str, Json], path: str) -> Iterator[tuple[str, Json, int]]:
    """Yield the schemas right inside, each with its place and the levels that it lies deeper."""
    for keyword, value in schema.items():
        place = f"{path}/{keyword}"
        if keyword in _SINGLES:
            yield place, value, 1
        elif keyword in _MAPS:
            for name, inner in _expect(value, dict, "an object", place).items():
                yield f"{place}/{name}", inner, 2
        elif keyword in _LISTS:
            for index, inner in enumerate(_expect(value, list, "a list", place)):
                yield f"{place}/{index}", inner, 2


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
            _check_pattern(_expect(value, str, "a text", place), place)
        case "patternProperties":
            for pattern in value:
                _check_pattern(pattern, place)
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


def _find_target(resolver: Any, path: str, reference: str) -> Json:
    try:
        target: Json = resolver.lookup(reference).contents
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it leads nowhere
        raise UnusableSchema(f"{path}/$ref: there is no such place") from None
    if not isinstance(target, dict | bool):
        raise UnusableSchema(f"{path}/$ref: there is no schema at that place")
    return target


def _registry(schema: dict[str, Json]) -> referencing.Registry[Any]:
    # Without a way to retrieve anything: what is not here is nowhere.
    empty: referencing.Registry[Any] = referencing.Registry()
    registry: referencing.Registry[Any] = empty.with_resource(
        "", DRAFT202012.create_resource(schema)
    )
    return registry


def _check_pattern(pattern: str, place: str) -> None:
    try:
        compile_pattern(pattern)
    except re2.error as error:
        raise UnusableSchema(f"{place}: is no RE2 expression: {error}") from None
