"""Conditions on documents' metadata as SQL, on both databases; every value is a bound one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    String,
    Text,
    and_,
    bindparam,
    case,
    cast,
    false,
    func,
    literal,
    not_,
    or_,
)

from hansard_server.domain.filters import (
    All,
    AnyOf,
    Comparison,
    Condition,
    Not,
    OneOf,
    Operator,
    Path,
    Present,
    Value,
)

_COMPARE: dict[Operator, Callable[[Any, Any], Any]] = {
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.LESS: operator.lt,
    Operator.LESS_OR_EQUAL: operator.le,
    Operator.GREATER: operator.gt,
    Operator.GREATER_OR_EQUAL: operator.ge,
}
# How each database calls the types of JSON: text, number, true or false.
_SQLITE_TYPES = {str: ("text",), float: ("integer", "real"), bool: ("true", "false")}
_POSTGRES_TYPES = {str: ("string",), float: ("number",), bool: ("boolean",)}


def compile_condition(
    condition: Condition, metadata: ColumnElement[Any], *, postgres: bool
) -> ColumnElement[bool]:
    """Return the condition on a column that holds a JSON object."""
    return _Compiler(metadata, postgres=postgres).condition(condition)


class _Compiler:
    """Compiles for one column."""

    def __init__(self, metadata: ColumnElement[Any], *, postgres: bool) -> None:
        self._metadata = metadata
        self._postgres = postgres

    def condition(self, condition: Condition) -> ColumnElement[bool]:
        match condition:
            case All(conditions):
                return and_(*(self.condition(c) for c in conditions))
            case AnyOf(conditions):
                return or_(*(self.condition(c) for c in conditions))
            case Not(inner):
                return not_(self.condition(inner))
            case Present(path):
                return func.coalesce(self._type(path), "null") != "null"
            case OneOf(path, values):
                return or_(
                    false(), *(self._compare(path, Operator.EQUAL, value) for value in values)
                )
            case Comparison(path, op, value):
                return self._compare(path, op, value)

    def _compare(self, path: Path, op: Operator, value: Value) -> ColumnElement[bool]:
        kind = bool if isinstance(value, bool) else str if isinstance(value, str) else float
        types = (_POSTGRES_TYPES if self._postgres else _SQLITE_TYPES)[kind]
        # Null, and so neither true nor false, for a value that is missing or of another type.
        held = case((self._type(path).in_(types), self._text(path, kind)))
        given: Any = value
        if kind is bool:
            given = ("true" if value else "false") if self._postgres else int(bool(value))
        elif kind is float:
            given = float(value)
        return _COMPARE[op](held, literal(given))  # type: ignore[no-any-return]

    def _text(self, path: Path, kind: type) -> ColumnElement[Any]:
        if not self._postgres:
            return func.json_extract(self._metadata, _sqlite_path(path))
        text = self._metadata.op("#>>", return_type=Text())(_postgres_path(path))
        if kind is float:
            return cast(text, Float)
        return text.collate("C") if kind is str else text

    def _type(self, path: Path) -> ColumnElement[Any]:
        if self._postgres:
            from sqlalchemy.dialects.postgresql import JSONB  # noqa: PLC0415 - not for SQLite

            return func.jsonb_typeof(
                self._metadata.op("#>", return_type=JSONB())(_postgres_path(path))
            )
        return func.json_type(self._metadata, _sqlite_path(path))


def _sqlite_path(path: Path) -> ColumnElement[str]:
    return literal("$" + "".join(f'."{name}"' for name in path))


def _postgres_path(path: Path) -> ColumnElement[Any]:
    from sqlalchemy.dialects.postgresql import ARRAY  # noqa: PLC0415 - not for SQLite

    return bindparam(None, list(path), type_=ARRAY(String))
