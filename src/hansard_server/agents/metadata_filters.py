"""References inside metadata filters: what they name is only ever a value of the filter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from hansard_server.agents.api import Json
from hansard_server.agents.json_text import dump_json

FILTER_FORMAT = "metadata-filter"
"""The `format` of a tool's argument that is a metadata filter."""
_PART = re.compile(
    r"""\$\{(?P<reference>[^{}]*)\}   # a reference
    | (?P<quote>['"])                 # a text or a name begins, ends or goes on
    | (?P<comment>--|/\*|\{\#)        # what would hide quotes from a reader
    """,
    re.VERBOSE,
)


class UnusableReference(ValueError):  # noqa: N818 - reads as what it says
    """A reference stands where no value can, or names none that a filter can have."""


def bind_references(text: str, look_up: Callable[[str], Json]) -> str:
    """Return the filter with its references replaced by what they name.

    Inside single quotes that is text, with its own quotes doubled; elsewhere a literal of the
    value's type, a list of them for a list. Whatever a value holds, the filter reads it as that
    value and nothing more. Raises UnusableReference, and what `look_up` raises.
    """
    if "${" not in text:
        return text
    return "".join(_bound(text, look_up))


def _bound(text: str, look_up: Callable[[str], Json]) -> Iterator[str]:
    quote = ""
    end = 0
    for part in _PART.finditer(text):
        yield text[end : part.start()]
        end = part.end()
        reference = part["reference"]
        if reference is not None:
            yield _shown(look_up(reference), reference, quote)
            continue
        if part["quote"]:
            # A doubled quote ends the text and begins it anew.
            quote = part["quote"] if not quote else "" if quote == part["quote"] else quote
        elif not quote:
            raise UnusableReference("a filter with references has no comments")
        yield part[0]
    yield text[end:]


def _shown(value: Json, reference: str, quote: str) -> str:
    if quote == '"':
        raise UnusableReference(f"{reference} stands in a name, where no value can")
    if quote:
        return _text(value, reference).replace("'", "''")
    if isinstance(value, list) and value:
        return f"({', '.join(_literal(item, reference) for item in value)})"
    return _literal(value, reference)


def _literal(value: Json, reference: str) -> str:
    text = _text(value, reference)
    if not isinstance(value, str):
        return text
    return "'" + text.replace("'", "''") + "'"


def _text(value: Json, reference: str) -> str:
    match value:
        case str():
            return value
        case bool() | int() | float():
            return dump_json(value)
    raise UnusableReference(
        f"{reference} is {dump_json(value)[:100]}; filters compare with texts, numbers, true, false"
    )
