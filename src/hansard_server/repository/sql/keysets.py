"""Key sets: many keys as one parameter, joined with the rows that have them.

The statement stays the same however many keys there are, and both databases look each key up in an
index. `(a, b) IN (VALUES …)` does not do that: SQLite reads the whole table for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    String,
    TableValuedAlias,
    and_,
    bindparam,
    cast,
    literal_column,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

KEYS = "keys"
"""The name of the parameter, which `encode_keys` makes."""


class _KeyRows(FunctionElement[Any]):
    """The keys as rows of one column `value`, a JSON array each."""

    name = "key_rows"
    inherit_cache = True


class _KeyPart(FunctionElement[str]):
    """A part of a key: _KeyPart(value, index)."""

    name = "key_part"
    type = String()
    inherit_cache = True


@compiles(_KeyRows, "sqlite")
def _rows_sqlite(element: _KeyRows, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_KeyRows, "postgresql")
def _rows_postgresql(element: _KeyRows, compiler: SQLCompiler, **options: Any) -> str:
    return f"jsonb_array_elements(CAST({compiler.process(element.clauses, **options)} AS JSONB))"


@compiles(_KeyPart)
def _part(element: _KeyPart, compiler: SQLCompiler, **options: Any) -> str:
    value, index = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({value} ->> {index})"


def key_rows() -> TableValuedAlias:
    """Return the keys of the parameter KEYS as rows; `key_part` gives their parts."""
    return _KeyRows(bindparam(KEYS, type_=String)).table_valued("value", name="wanted")


def key_part(rows: TableValuedAlias, index: int, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return a part of each key, by its index from 0."""
    part: ColumnElement[Any] = _KeyPart(rows.c.value, literal_column(str(index)))
    return part if isinstance(type_, String) else cast(part, type_)


def select_by_keys(
    *columns: Any, source: FromClause, keys: Iterable[ColumnElement[Any]]
) -> Select[Any]:
    """Return a select of the rows of `source` whose `keys` columns equal one of the keys.

    Its parameter is KEYS.
    """
    rows = key_rows()
    parts = [column == key_part(rows, index, column.type) for index, column in enumerate(keys)]
    return select(*columns).select_from(rows.join(source, and_(*parts)))


def encode_keys(keys: Iterable[tuple[str | int, ...]]) -> dict[str, str]:
    """Return the parameters of a select_by_keys; no key may be given twice."""
    return {KEYS: json.dumps(sorted(keys), separators=(",", ":"))}
