"""What is kept in `provider_data` of an event, so that a provider gets back what it wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from hansard_server.agents.json_text import NotJson, dump_json, parse_json
from hansard_server.domain.values import dataclass

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderData:
    """What a provider sent with one part of an answer.

    Attributes:
        provider: who can read the rest, as ProviderRules name it.
        response_id: the answer that the part belongs to; made by us, new for every call.
        kind: what the part was: `thinking`, `text` or `tool_call`.
        signature: of a thought, verbatim.
        part_id: the provider's own name of the part, or of its kind.
        details: anything else, as JSON.
        call_id: the provider's id of a tool call.
        characters: how long a thought is, in decimal: its signature is good for the whole of it.
    """

    provider: str
    response_id: str
    kind: str
    signature: str = ""
    part_id: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    call_id: str = ""
    characters: str = ""


_NAMES = {
    "provider": "p",
    "response_id": "r",
    "kind": "k",
    "signature": "s",
    "part_id": "i",
    "details": "d",
    "call_id": "c",
    "characters": "n",
}


def encode(data: ProviderData) -> bytes:
    """Return the data as it is kept: compact JSON, what is empty left out."""
    values = {short: getattr(data, name) for name, short in _NAMES.items()}
    kept = {short: value for short, value in values.items() if value}
    return dump_json({"v": _VERSION, **kept}).encode()


def decode(data: bytes) -> ProviderData | None:
    """Return what was kept; None for what is empty or was written by somebody else."""
    try:
        kept = parse_json(data.decode()) if data.startswith(b"{") else None
    except (NotJson, UnicodeDecodeError):
        return None
    if not isinstance(kept, dict) or kept.get("v") != _VERSION:
        return None
    values = {name: kept[short] for name, short in _NAMES.items() if short in kept}
    details = values.pop("details", {})
    if not isinstance(details, dict) or not all(isinstance(v, str) for v in values.values()):
        return None
    if not {"provider", "response_id", "kind"} <= values.keys():
        return None
    return ProviderData(details=details, **values)
