"""Conditions on the metadata of documents, as they are understood: values are only ever values.

A comparison with a field that is missing, or whose value is of another type, is neither true nor
false, as in SQL: it does not hold, and neither does its negation.
"""

from __future__ import annotations

from enum import Enum

from hansard_server.domain.values import dataclass

Value = str | int | float | bool
Path = tuple[str, ...]
"""A field of a document's metadata: the names from the outside in."""


class Operator(Enum):
    """How a field is compared with a value."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="


@dataclass(frozen=True, slots=True)
class Comparison:
    """`doc.field = value`; texts are compared by code point, true and false for equality only."""

    path: Path
    operator: Operator
    value: Value


@dataclass(frozen=True, slots=True)
class OneOf:
    """`doc.field IN (values)`."""

    path: Path
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Present:
    """`doc.field IS NOT NULL`: the field is there, and not null."""

    path: Path


@dataclass(frozen=True, slots=True)
class Not:
    """`NOT condition`."""

    condition: Condition


@dataclass(frozen=True, slots=True)
class All:
    """`a AND b AND …`."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """`a OR b OR …`."""

    conditions: tuple[Condition, ...]


Condition = Comparison | OneOf | Present | Not | All | AnyOf
