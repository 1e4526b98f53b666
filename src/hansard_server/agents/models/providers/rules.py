"""What providers' interfaces accept, as far as it decides what a history becomes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from hansard_server.domain.values import dataclass

_CALL_ID = re.compile(r"[0-9a-zA-Z_-]{1,40}")
_NOT_IN_NAMES = re.compile(r"[^0-9a-zA-Z_-]")
_NAME_MAX_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRules:
    """How one provider is spoken to.

    Attributes:
        provider: names whoever can read the provider_data of an event: `anthropic`, `google`,
            `openai`, or an OpenAI-compatible server. pydantic-ai knows it under the same name.
        sees_images: whether the model takes images.
        takes_image_detail: whether it is told how closely to look.
        reasoning_of_turn_only: reasoning goes back only while its own turn lasts.
        marks_errors: outputs say beside their content that they are errors; else the content does.
        outputs_are_objects: outputs are objects, not texts.
    """

    provider: str
    sees_images: bool = False
    takes_image_detail: bool = False
    reasoning_of_turn_only: bool = False
    marks_errors: bool = False
    outputs_are_objects: bool = False


def wire_call_id(call_id: str, taken: set[str]) -> str:
    """Return an id that every provider takes and that is not in `taken`; it is then."""
    if not _CALL_ID.fullmatch(call_id) or call_id in taken:
        digest = hashlib.sha256(f"{call_id}\0{len(taken)}".encode()).hexdigest()
        call_id = f"call_{digest[:24]}"
    taken.add(call_id)
    return call_id


def wire_name(name: str) -> str:
    """Return a tool's name as every provider takes it: 64 letters, digits, `_` and `-` at most, no
    digit or `-` first.
    """
    clean = _NOT_IN_NAMES.sub("_", name)[:_NAME_MAX_CHARACTERS] or "_"
    if clean[0].isdigit() or clean[0] == "-":
        clean = f"_{clean}"[:_NAME_MAX_CHARACTERS]
    return clean


def names_by_wire(names: Iterable[str]) -> Mapping[str, str]:
    """Return the tools' own names by those that the provider knows."""
    return {wire_name(name): name for name in names}
