"""Filters: both databases find what Python finds, and hostile texts find nothing more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, insert, select

from hansard_server.corpora.filters import parse_filter
from hansard_server.corpora.terms import CorpusTerms
from hansard_server.domain.errors import InvalidRequest
from hansard_server.domain.filters import (
    All,
    AnyOf,
    Comparison,
    Condition,
    Not,
    OneOf,
    Operator,
    Present,
)
from hansard_server.repository.sql.filters import compile_condition
from hansard_server.repository.sql.tables import documents
from tests.support.conditions import holds

# Few names and values, so that they meet; what databases may take for something else among them.
NAMES = st.sampled_from(["a", "b", "A", "ä b", "it's", "$.a", "a.b", "0", "%s", "中"])
TEXTS = st.sampled_from(
    ["", "x", "X", "x'", "2024", "true", "é", "\\", '"', "a\nb", "中", "🙂", ":p"]
)
NUMBERS = st.sampled_from([0, -0.0, 1, 1.0, 1.5, -2, 2024, 2**53 - 1, 1e300, 5e-324])
VALUES = st.one_of(TEXTS, NUMBERS, st.booleans())
JSON = st.recursive(
    st.one_of(VALUES, st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES, inner, max_size=2)),
    max_leaves=4,
)
FIELDS = st.dictionaries(NAMES, JSON, max_size=4)
PATHS = st.lists(NAMES, min_size=1, max_size=2).map(tuple)


def compare(path: Any, how: Operator, value: Any) -> Comparison:
    if isinstance(value, bool) and how not in {Operator.EQUAL, Operator.NOT_EQUAL}:
        how = Operator.EQUAL
    return Comparison(path, how, value)


SINGLE = st.one_of(
    st.builds(compare, PATHS, st.sampled_from(Operator), VALUES),
    st.builds(OneOf, PATHS, st.lists(VALUES, min_size=1, max_size=3).map(tuple)),
    st.builds(Present, PATHS),
)
CONDITIONS: st.SearchStrategy[Condition] = st.recursive(
    SINGLE,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(All, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=5,
)


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """Give a connection in a transaction that is taken back."""
    with engine.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()


def found(connection: Connection, fields: list[dict[str, Any]], condition: Condition) -> list[int]:
    """Return which of the metadata the database finds."""
    savepoint = connection.begin_nested()
    rows = [
        {
            "tenant": "t",
            "corpus_uid": "c",
            "uid": f"{number:03}",
            "id": str(number),
            "metadata": b"",
            "fields": one,
            "size_bytes": 0,
            "passage_count": 0,
            "created_at": 0,
            "updated_at": 0,
        }
        for number, one in enumerate(fields)
    ]
    connection.execute(insert(documents), rows)
    postgres = connection.dialect.name == "postgresql"
    wanted = (
        select(documents.c.id)
        .where(compile_condition(condition, documents.c.fields, postgres=postgres))
        .order_by(documents.c.uid)
    )
    numbers = [int(number) for number in connection.execute(wanted).scalars()]
    savepoint.rollback()
    return numbers


@given(st.lists(FIELDS, min_size=1, max_size=4), CONDITIONS)
@example([{"a": "x"}, {"a": 1}, {}], Not(Comparison(("a",), Operator.EQUAL, "x")))
@example([{"a": True}, {"a": 1}, {"a": "true"}], Comparison(("a",), Operator.EQUAL, value=True))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_databases_find_what_python_finds(
    connection: Connection, fields: list[dict[str, Any]], condition: Condition
) -> None:
    expected = [number for number, one in enumerate(fields) if holds(condition, one)]
    assert found(connection, fields, condition) == expected


@given(FIELDS, CONDITIONS)
@settings(max_examples=200, deadline=None)
def test_terms_that_a_condition_requires_are_those_of_its_documents(
    fields: dict[str, Any], condition: Condition
) -> None:
    terms = CorpusTerms("corpus")
    if holds(condition, fields):
        held = terms.of_fields(fields)
        assert all(held & set(group) for group in terms.required(condition))


HOSTILE = [
    "1 = 1",
    "TRUE",
    "doc.a = 'x' OR 1 = 1",
    "doc.a = 'x'; DELETE FROM documents",
    "doc.a = 'x' UNION SELECT 1",
    "doc.a IN (SELECT id FROM documents)",
    "EXISTS (SELECT 1)",
    "doc.a = current_user",
    "doc.a = version()",
    "pg_sleep(10) IS NULL",
    "doc.a = CAST(1 AS TEXT)",
    "doc.a || 'x' = 'x'",
    "doc.a LIKE '%'",
    "doc.a ~ '.*'",
    "doc.a = :p",
    "doc.a = ?",
    "doc.a = $1",
    "doc.a = doc.a",
    "documents.tenant = 'other'",
    "doc = 'x'",
    "tenant = 'other'",
    "doc.a[0] = 1",
    "doc.* IS NOT NULL",
    "doc.a = 'x' COLLATE NOCASE",
    "CASE WHEN TRUE THEN doc.a ELSE 1 END = 1",
    "doc.a = 0x7fffffff",
    "doc.a = 1e999",
    "doc.a = 9007199254740993",
    'doc."a""b" = 1',
    'doc."a\\b" = 1',
    "doc.a = 'x\0'",
    "(" * 5_000 + "doc.a = 1" + ")" * 5_000,
    "NOT " * 1_000 + "doc.a = 1",
    " OR ".join(["doc.a = 1"] * 200),
    f"doc.a IN ({', '.join(['1'] * 300)})",
    "doc.a = '" + "x" * 5_000 + "'",
    "/* doc.a = 1",
    "doc.a = 'x",
    "doc.a =",
    "= 1",
    "{{ doc.a }} = 1",
    "@a = 1",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_filter(text, "metadata_filter")
    assert refused.value.violations[0].field == "metadata_filter"


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("doc.a = 1 AND doc.b LIKE 'x'", 15),
        ("doc.a = 1 AND b = 2", 15),
        ("doc.a = 1 AND doc.b = lower('X')", 23),
        ("doc.a = 1 AND\ndoc.b = 1e999", 23),
    ],
)
def test_faults_say_where_they_are(text: str, column: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"\(column {column}\)"):
        parse_filter(text, "f")


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("", None),
        ("doc.a = 'it''s'", Comparison(("a",), Operator.EQUAL, "it's")),
        ("2024 <= doc.year", Comparison(("year",), Operator.GREATER_OR_EQUAL, 2024)),
        ("doc.a.b <> -1.5", Comparison(("a", "b"), Operator.NOT_EQUAL, -1.5)),
        ('doc."a b" = true', Comparison(("a b",), Operator.EQUAL, value=True)),
        ("doc.x is not null", Not(Not(Present(("x",))))),
        ("doc.x NOT IN (1, 'a')", Not(OneOf(("x",), (1, "a")))),
        (
            "doc.a = 1 or doc.b = 2 and not doc.c = 3",
            AnyOf(
                (
                    Comparison(("a",), Operator.EQUAL, 1),
                    All(
                        (
                            Comparison(("b",), Operator.EQUAL, 2),
                            Not(Comparison(("c",), Operator.EQUAL, 3)),
                        )
                    ),
                )
            ),
        ),
    ],
)
def test_filters_are_read(text: str, condition: Condition | None) -> None:
    assert parse_filter(text, "f") == condition
