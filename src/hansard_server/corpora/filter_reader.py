"""Reads filters: the part of SQL's conditions that an allow-list of nodes names. The text goes
nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from hansard_server.domain.errors import InvalidRequest
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

FILTER_MAX_CHARACTERS = 4_096
CONDITIONS_MAX = 128
VALUES_MAX = 256
_LEVELS_MAX = 32
_WHOLE_NUMBERS_BELOW = 2**53
_OPERATORS: dict[type[exp.Expr], Operator] = {
    exp.EQ: Operator.EQUAL,
    exp.NEQ: Operator.NOT_EQUAL,
    exp.LT: Operator.LESS,
    exp.LTE: Operator.LESS_OR_EQUAL,
    exp.GT: Operator.GREATER,
    exp.GTE: Operator.GREATER_OR_EQUAL,
}
_MIRRORED = {
    Operator.EQUAL: Operator.EQUAL,
    Operator.NOT_EQUAL: Operator.NOT_EQUAL,
    Operator.LESS: Operator.GREATER,
    Operator.LESS_OR_EQUAL: Operator.GREATER_OR_EQUAL,
    Operator.GREATER: Operator.LESS,
    Operator.GREATER_OR_EQUAL: Operator.LESS_OR_EQUAL,
}
_ROOT = "doc"
_UNNAMEABLE = re.compile(r'["\\\x00-\x1f]')


class FilterReader:
    """Reads one filter."""

    def __init__(self, text: str, field: str) -> None:
        """Read `text`, which stands in the request's `field`."""
        self._text = text
        self._field = field
        self._conditions = 0

    def read(self) -> Condition:
        """Return its conditions. Raises InvalidRequest."""
        if len(self._text) > FILTER_MAX_CHARACTERS:
            raise self._error(f"has at most {FILTER_MAX_CHARACTERS:,} characters")
        depth = deepest = 0
        for character in self._text:
            depth += (character == "(") - (character == ")")
            deepest = max(deepest, depth)
        if deepest > _LEVELS_MAX:
            raise self._error(f"has at most {_LEVELS_MAX} parentheses inside each other")
        try:
            parsed = sqlglot.parse_one(self._text, into=exp.Condition)
        except SqlglotError as error:
            raise self._unreadable(error) from None
        except RecursionError:
            raise self._error("is nested too deeply") from None
        return self._condition(parsed, 0)

    def _condition(self, node: exp.Expr, level: int) -> Condition:
        if level > _LEVELS_MAX:
            raise self._error("is nested too deeply")
        match node:
            case exp.Paren():
                return self._condition(node.this, level + 1)
            case exp.And() | exp.Or():
                kind = All if isinstance(node, exp.And) else AnyOf
                # One chain, however long, is one level.
                return kind(tuple(self._condition(n, level + 1) for n in _chain(node, type(node))))
            case exp.Not():
                return Not(self._condition(node.this, level + 1))
        self._conditions += 1
        if self._conditions > CONDITIONS_MAX:
            raise self._error(f"has at most {CONDITIONS_MAX} conditions")
        return self._single(node)

    def _single(self, node: exp.Expr) -> Condition:
        operator = _OPERATORS.get(type(node))
        if operator is not None:
            return self._comparison(node, operator)
        match node:
            case exp.In() if node.expressions:
                if len(node.expressions) > VALUES_MAX:
                    raise self._error(f"has at most {VALUES_MAX} values in a list", node)
                values = tuple(self._value(value) for value in node.expressions)
                return OneOf(self._path(node.this), values)
            case exp.Between():
                path = self._path(node.this)
                low, high = self._value(node.args["low"]), self._value(node.args["high"])
                return All(
                    (
                        Comparison(path, Operator.GREATER_OR_EQUAL, low),
                        Comparison(path, Operator.LESS_OR_EQUAL, high),
                    )
                )
            case exp.Is() if isinstance(node.expression, exp.Null):
                return Not(Present(self._path(node.this)))
            case exp.Column() | exp.Literal() | exp.Boolean() | exp.Null():
                raise self._error("needs a comparison here", node)
        raise self._error(
            "knows =, !=, <, <=, >, >=, IN (…), BETWEEN, IS NULL, IS NOT NULL, AND, OR, NOT", node
        )

    def _comparison(self, node: exp.Expr, operator: Operator) -> Comparison:
        field, value = node.this, node.expression
        if not isinstance(field, exp.Column | exp.Dot) and isinstance(value, exp.Column | exp.Dot):
            field, value, operator = value, field, _MIRRORED[operator]
        path, given = self._path(field), self._value(value)
        if isinstance(given, bool) and operator not in {Operator.EQUAL, Operator.NOT_EQUAL}:
            raise self._error("compares true and false by = and != only", node)
        return Comparison(path, operator, given)

    def _path(self, node: exp.Expr) -> Path:
        names: list[str] = []
        for part in _parts(node):
            if not isinstance(part, exp.Identifier):
                raise self._error(f"needs a field here, such as {_ROOT}.year", node)
            name = str(part.this)
            # SQLite can't name a member that JSON writes with an escape.
            if _UNNAMEABLE.search(name):
                raise self._error("names a field with a character that can't be used", node)
            names.append(name)
        if len(names) < 2 or names[0] != _ROOT:  # noqa: PLR2004 - the root and a name
            raise self._error(f"names fields as {_ROOT}.name", node)
        return tuple(names[1:])

    def _value(self, node: exp.Expr) -> Value:
        match node:
            case exp.Literal() if node.is_string:
                text = str(node.this)
                if "\0" in text:
                    raise self._error("holds a NUL character", node)
                return text
            case exp.Literal():
                return self._number(str(node.this), node)
            case exp.Neg() if isinstance(node.this, exp.Literal) and not node.this.is_string:
                return -self._number(str(node.this.this), node.this)
            case exp.Boolean():
                return bool(node.this)
        raise self._error(
            "needs a value here: a text in single quotes, a number, true, false", node
        )

    def _number(self, text: str, node: exp.Expr) -> int | float:
        try:
            number = int(text) if text.isdecimal() else float(text)
        except ValueError:
            raise self._error("needs a number here", node) from None
        # Metadata holds doubles: beyond them, values that differ would be equal.
        if not abs(number) < (_WHOLE_NUMBERS_BELOW if isinstance(number, int) else float("inf")):
            raise self._error("has a number that is too large", node)
        return number

    def _unreadable(self, error: SqlglotError) -> InvalidRequest:
        for fault in getattr(error, "errors", ()):
            if fault.get("col") is not None:
                return self._error(f"can't be read at column {fault['col']}")
        return self._error("can't be read: is a quote not closed?")

    def _error(self, problem: str, node: exp.Expr | None = None) -> InvalidRequest:
        at = None if node is None else _start(node)
        where = "" if at is None else f" (column {at + 1})"
        return InvalidRequest.of_field(self._field, f"{problem}{where}")


def _chain(node: exp.Expr, kind: type[exp.Expr]) -> Iterator[exp.Expr]:
    """Yield what the operators of one kind join, from left to right."""
    right: list[exp.Expr] = []
    while isinstance(node, kind):
        right.append(node.expression)
        node = node.this
    yield node
    yield from reversed(right)


def _parts(node: exp.Expr) -> list[exp.Expr]:
    """Return the names of a dotted field from the outside in."""
    if isinstance(node, exp.Dot):
        return [*_parts(node.this), node.expression]
    if isinstance(node, exp.Column):
        return list(node.parts)
    return [node]


def _start(node: exp.Expr) -> int | None:
    return min((n.meta["start"] for n in node.walk() if "start" in n.meta), default=None)
