"""References in metadata filters: whatever a value holds, the filter reads that value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hansard.v1 import agent_pb2, session_pb2
from hansard_server.agents.metadata_filters import UnusableReference, bind_references
from hansard_server.agents.overrides import UnresolvedReference, resolve_overrides
from hansard_server.corpora.filters import parse_filter
from hansard_server.domain.filters import All, Comparison, OneOf, Operator

# Rich in what filters are made of.
PIECES = [
    "'",
    "''",
    '"',
    "\\",
    "--",
    "/*",
    "*/",
    "{#",
    "#}",
    "${x}",
    "\n",
    ";",
    "(",
    "OR",
    "=",
    "a",
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)
NUMBERS = st.one_of(st.integers(-(2**53) + 1, 2**53 - 1), st.floats(-1e300, 1e300))
VALUES = st.one_of(TEXTS, NUMBERS, st.booleans())


def equal(name: str, value: Any) -> Comparison:
    return Comparison((name,), Operator.EQUAL, value)


def read(text: str, **values: Any) -> Any:
    return parse_filter(bind_references(text, values.__getitem__), "f")


@given(TEXTS, TEXTS)
@example("x' OR doc.access_level = 'admin", "' --")
def test_texts_in_quotes_are_texts(one: str, other: str) -> None:
    condition = read("doc.a = 'it''s ${one}' AND doc.\"b'\" = '${other}.'", one=one, other=other)
    assert condition == All((equal("a", f"it's {one}"), equal("b'", f"{other}.")))


@given(VALUES, st.lists(VALUES, min_size=1, max_size=3))
def test_values_outside_of_quotes_are_values(value: Any, values: list[Any]) -> None:
    condition = read("doc.a = ${value} AND doc.b IN ${values}", value=value, values=values)
    assert condition == All((equal("a", value), OneOf(("b",), tuple(values))))
    assert type(condition.conditions[0].value) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("doc.a = ${x}", None),
        ("doc.a = ${x}", {"a": 1}),
        ("doc.a IN ${x}", []),
        ("doc.a IN ${x}", [["a"]]),
        ("doc.a = '${x}'", ["a"]),
        ('doc."${x}" = 1', "a"),
        ("/* ' */ doc.a = '${x}'", "a"),
        ("doc.a = 1 -- '\n AND doc.b = '${x}'", "a"),
        ("{# ' #} doc.a = '${x}'", "a"),
    ],
)
def test_what_can_be_no_value_is_refused(text: str, value: Any) -> None:
    with pytest.raises(UnusableReference):
        bind_references(text, lambda _: value)


def test_only_filters_are_bound_so() -> None:
    session = session_pb2.Session(metadata={"x": "it's"})
    override = {"metadata_filter": "doc.a = ${session.metadata.x}", "text": "${session.metadata.x}"}
    resolved = resolve_overrides(override, agent_pb2.Agent(), session, {"metadata_filter"})
    assert resolved == {"metadata_filter": "doc.a = 'it''s'", "text": "it's"}
    override = {"metadata_filter": "doc.a = '${session.metadata.y}'"}
    with pytest.raises(UnresolvedReference, match=r"session\.metadata\.y is not set"):
        resolve_overrides(override, agent_pb2.Agent(), session, {"metadata_filter"})
