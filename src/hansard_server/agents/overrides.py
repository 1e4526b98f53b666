"""Overrides: tool arguments that the agent's configuration fixes and the model never sees."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from hansard.v1 import agent_pb2, session_pb2
from hansard_server.agents.api import Json, Tool
from hansard_server.agents.json_text import dump_json, struct_to_json
from hansard_server.agents.metadata_filters import (
    FILTER_FORMAT,
    UnusableReference,
    bind_references,
)

_REFERENCE = re.compile(r"(?:session|agent)\.(?:key|name|description|metadata(?:\.[^.${}]+)+)")
_Roots = Mapping[str, agent_pb2.Agent | session_pb2.Session]
_INTERPOLATION = re.compile(r"\$\{([^{}]*)\}")


class UnresolvedReference(ValueError):  # noqa: N818 - reads as what it says
    """A reference names something that is not there."""


def resolve_overrides(
    override: Mapping[str, Json],
    agent: agent_pb2.Agent,
    session: session_pb2.Session,
    filters: Collection[str] = (),
) -> dict[str, Json]:
    """Return the arguments with references replaced by what they name.

    `{"$ref": "session.metadata.x"}` becomes the value itself; `${session.metadata.x}` inside a
    string becomes its text, and in arguments that are metadata `filters` a value of the filter.
    Raises UnresolvedReference.
    """
    roots: _Roots = {"agent": agent, "session": session}
    return {
        name: resolve_filter(value, agent, session)
        if name in filters and isinstance(value, str)
        else _resolve(value, roots)
        for name, value in override.items()
    }


def resolve_filter(text: str, agent: agent_pb2.Agent, session: session_pb2.Session) -> str:
    """Return the metadata filter with its references as values. Raises UnresolvedReference."""
    roots: _Roots = {"agent": agent, "session": session}
    try:
        return bind_references(text, lambda reference: _look_up(reference, roots))
    except UnusableReference as error:
        raise UnresolvedReference(str(error)) from None


def filter_arguments(tool: Tool) -> frozenset[str]:
    """Return which of the tool's arguments are metadata filters."""
    known: Mapping[str, Json] = tool.input_schema.get("properties", {})
    return frozenset(n for n, schema in known.items() if schema.get("format") == FILTER_FORMAT)


def find_bad_references(value: Json, path: str) -> Iterator[tuple[str, str]]:
    """Yield (path, description) of every reference that no agent or session could answer."""
    if isinstance(value, Mapping):
        if "$ref" in value:
            yield from _check_reference(value, path)
            return
        for name, member in value.items():
            yield from find_bad_references(member, f"{path}.{name}")
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from find_bad_references(member, f"{path}[{index}]")
    elif isinstance(value, str):
        for reference in _INTERPOLATION.findall(value):
            if not _REFERENCE.fullmatch(reference):
                yield path, _not_a_reference(reference)


def _check_reference(value: Mapping[str, Json], path: str) -> Iterator[tuple[str, str]]:
    reference = value["$ref"]
    if len(value) > 1:
        yield path, 'an object with "$ref" has no other members'
    elif not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
        yield f"{path}.$ref", _not_a_reference(reference)


def _not_a_reference(reference: Json) -> str:
    return (
        f"{str(reference)[:100]!r} is no reference; references look like session.metadata.x, "
        "session.name, agent.metadata.x"
    )


def _resolve(value: Json, roots: _Roots) -> Json:
    if isinstance(value, Mapping):
        if "$ref" in value:
            return _look_up(str(value["$ref"]), roots)
        return {name: _resolve(member, roots) for name, member in value.items()}
    if isinstance(value, list):
        return [_resolve(member, roots) for member in value]
    if isinstance(value, str):
        return _INTERPOLATION.sub(lambda match: _as_text(_look_up(match[1], roots)), value)
    return value


def _as_text(value: Json) -> str:
    return value if isinstance(value, str) else dump_json(value)


def _look_up(reference: str, roots: _Roots) -> Json:
    if not _REFERENCE.fullmatch(reference):
        raise UnresolvedReference(_not_a_reference(reference))
    root, member, *path = reference.split(".")
    resource = roots[root]
    if member != "metadata":
        return getattr(resource, member)
    value: Json = struct_to_json(resource.metadata)
    for name in path:
        if not isinstance(value, dict) or name not in value:
            raise UnresolvedReference(f"{reference} is not set")
        value = value[name]
    return value
