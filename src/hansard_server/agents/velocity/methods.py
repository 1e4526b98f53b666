"""The methods that templates may call: on strings, lists and maps, each a function of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Value = Any
"""What JSON has: str, int, float, bool, None, list and dict of these; ranges too."""


def element(value: Value, key: Value) -> Value:
    """Return the element of a list or map; null when it is not there."""
    if isinstance(value, dict):
        return value.get(key) if isinstance(key, str) else None
    if isinstance(value, list | range) and type(key) is int and -len(value) <= key < len(value):
        return value[key]
    return None


def _length(value: Sequence[Value]) -> int:
    return len(value)


def _is_empty(value: Sequence[Value]) -> bool:
    return not value


def _holds(value: Sequence[Value], wanted: Value) -> bool:
    return wanted in value


def _text(of: Callable[[str, str], Value]) -> Callable[[str, Value], Value]:
    """Return the function for a text argument; any other argument gives null."""
    return lambda value, argument: of(value, argument) if isinstance(argument, str) else None


_SEQUENCE: dict[tuple[str, int], Callable[..., Value]] = {
    ("size", 0): _length,
    ("isEmpty", 0): _is_empty,
    ("get", 1): element,
    ("contains", 1): _holds,
}
METHODS: dict[type, dict[tuple[str, int], Callable[..., Value]]] = {
    str: {
        ("length", 0): _length,
        ("isEmpty", 0): _is_empty,
        ("toUpperCase", 0): str.upper,
        ("toLowerCase", 0): str.lower,
        ("trim", 0): str.strip,
        ("contains", 1): _text(lambda value, part: part in value),
        ("startsWith", 1): _text(str.startswith),
        ("endsWith", 1): _text(str.endswith),
        ("equals", 1): _text(str.__eq__),
        ("equalsIgnoreCase", 1): _text(lambda value, other: value.lower() == other.lower()),
    },
    list: _SEQUENCE,
    range: _SEQUENCE,
    dict: {
        ("size", 0): _length,
        ("isEmpty", 0): _is_empty,
        ("get", 1): element,
        ("containsKey", 1): lambda value, key: isinstance(key, str) and key in value,
        ("keySet", 0): list,
        ("values", 0): lambda value: list(value.values()),
    },
}
"""By the type of what they are called on, then by name and number of arguments."""


def find_method(value: Value, name: str, arguments: int) -> Callable[..., Value] | None:
    """Return the method of the value, None when it has none of that name and arity."""
    return METHODS.get(type(value), {}).get((name, arguments))
