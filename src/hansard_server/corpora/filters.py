"""The filter language: `doc.year >= 2024 AND doc.lang IN ('en', 'de')` becomes conditions."""

from __future__ import annotations

from hansard_server.domain.errors import InvalidRequest
from hansard_server.domain.filters import Condition


def parse_filter(text: str, field: str) -> Condition | None:
    """Return the conditions of a filter, None for an empty one.

    Raises InvalidRequest, which names the request's `field`, what is wrong and the column.
    """
    if not text.strip():
        return None
    # It brings a parser of SQL, for which servers without filters need not wait.
    from hansard_server.corpora.filter_reader import FilterReader  # noqa: PLC0415

    return FilterReader(text, field).read()


def check_filter(text: str) -> str:
    """Return what is wrong with a filter, empty for nothing."""
    try:
        parse_filter(text, "")
    except InvalidRequest as error:
        return error.violations[0].description
    return ""
