"""The JSON schema validator for schemas that others wrote: applied with bounded work.

Regular expressions are RE2, which takes linear time; no reference leads out of the schema; and a
check that takes too many steps, or too long, is given up.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from itertools import islice
from typing import Any

import attrs
import re2
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from hansard_server.agents.api import Json

MESSAGE_MAX_CHARACTERS = 300

_NAMES_SHOWN = 5
# As JSON schemas have it; RE2 has another form.
_UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_NOTHING: Registry[Any] = Registry()
"""References lead nowhere but into the schema itself: the library would fetch others by itself."""


class TooMuchWork(Exception):  # noqa: N818 - reads as what it says
    """The check was given up: it would take too long."""


class NotApplicable(ValueError):  # noqa: N818 - reads as what it says
    """The schema holds what can't be applied: a reference that leads nowhere, a list for a text."""


def find_errors(
    schema: Mapping[str, Json],
    value: Json,
    *,
    max_steps: int,
    max_s: float,
    max_errors: int | None = None,
) -> list[ValidationError]:
    """Return how the value breaks the schema, in no order; none when it fits.

    `max_steps` is how many keywords may be looked at, each of which takes microseconds unless the
    value is large; `max_s` the time of the thread's own that it may take. Formats are not looked
    at, nor `unevaluated…`, nor patterns that RE2 does not know. Messages are cut.

    Raises TooMuchWork, NotApplicable.
    """
    token = _budget.set(_Budget(max_steps, max_s))
    try:
        errors = _Validator(schema, registry=_NOTHING).iter_errors(value)
        return list(islice(errors, max_errors))
    except TooMuchWork:
        raise
    except RecursionError:
        raise TooMuchWork("it is nested too deeply, or refers to itself without end") from None
    except Unresolvable:
        raise NotApplicable("it refers to what is not in it") from None
    except Exception as error:  # noqa: BLE001 - the library trusts its schemas, which were checked
        # only as far as it is known what is one: a reference leads to any place.
        raise NotApplicable(f"a keyword can't be applied: {type(error).__name__}") from None
    finally:
        _budget.reset(token)


@lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> Any:
    """Return the compiled pattern. Raises re2.error for what RE2 does not know (a look-ahead)."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(_UNICODE_ESCAPE.sub(r"\\x{\1}", pattern), options)


class _Budget:
    """What is left of one check."""

    def __init__(self, steps: int, seconds: float) -> None:
        self._steps = steps
        self._until = time.thread_time() + seconds

    def spend(self) -> None:
        self._steps -= 1
        if self._steps < 0 or time.thread_time() > self._until:
            raise TooMuchWork("it would take too long")


_budget: ContextVar[_Budget] = ContextVar("budget")

_Errors = Iterator[ValidationError]
_Keyword = Callable[[Any, Any, Any, Any], Any]


def _counted(keyword: _Keyword) -> _Keyword:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> _Errors:
        _budget.get().spend()
        for error in keyword(validator, value, instance, schema) or ():
            # The library's show the whole value, thousands of times if there are so many faults.
            error.message = error.message[:MESSAGE_MAX_CHARACTERS]
            yield error

    return check


def _find_pattern(pattern: str) -> Any:
    """Return the compiled pattern, None for one that RE2 does not know: it is not checked."""
    try:
        return compile_pattern(pattern)
    except re2.error:
        return None


def _pattern(validator: Any, pattern: Any, instance: Any, _schema: Any) -> _Errors:
    if not validator.is_type(instance, "string"):
        return
    compiled = _find_pattern(pattern)
    if compiled is not None and not compiled.search(instance):
        yield ValidationError(f"does not match {pattern[:100]!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _schema: Any) -> _Errors:
    if not validator.is_type(instance, "object"):
        return
    for pattern, subschema in patterns.items():
        compiled = _find_pattern(pattern)
        for name, value in instance.items():
            _budget.get().spend()
            if compiled is not None and compiled.search(name):
                yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> _Errors:
    if not validator.is_type(instance, "object"):
        return
    known = schema.get("properties", {})
    patterns = [_find_pattern(pattern) for pattern in schema.get("patternProperties", {})]
    others = []
    for name in instance:
        _budget.get().spend()
        if name not in known and not any(found is None or found.search(name) for found in patterns):
            others.append(name)
    if allowed is not False:
        for name in others:
            yield from validator.descend(instance[name], allowed, path=name)
    elif others:
        names = ", ".join(repr(name[:100]) for name in others[:_NAMES_SHOWN])
        yield ValidationError(f"there may be no {names}")


def _unique_items(validator: Any, unique: bool, instance: Any, _schema: Any) -> _Errors:  # noqa: FBT001
    if unique and validator.is_type(instance, "array"):
        seen = {json.dumps(_canonical(item), sort_keys=True) for item in instance}
        if len(seen) < len(instance):
            yield ValidationError("has the same item twice")


def _canonical(value: Json) -> Json:
    """Return the value with equal numbers alike: 1.0 is 1."""
    if isinstance(value, dict):
        return {name: _canonical(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


_OURS: dict[str, _Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
    # The library follows references for these without a keyword that could be counted.
    "unevaluatedItems": lambda *_: None,
    "unevaluatedProperties": lambda *_: None,
}
_KEYWORDS: dict[str, _Keyword] = {**Draft202012Validator.VALIDATORS, **_OURS}
_Validator: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {name: _counted(keyword) for name, keyword in _KEYWORDS.items()}
)


def _evolve(self: Any, **changes: Any) -> Any:
    # The library's own would let `$schema` choose a validator without our bounds.
    fields = [field for field in attrs.fields(_Validator) if field.init]
    kept = {field.alias: getattr(self, field.name) for field in fields}
    return _Validator(**{**kept, **changes})


_Validator.evolve = _evolve
