"""What the documented API calls otherwise than the contract does, each difference once.

Both the reader and the writer of JSON, and /openapi.json, go by these tables.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from hansard.v1 import options_pb2

_RENAMED: Final = {
    "hansard.v1.Model.retry": "retry_configuration",
    "hansard.v1.RetryPolicy.initial_backoff": "initial_backoff_ms",
    "hansard.v1.RetryPolicy.max_backoff": "max_backoff_ms",
    "hansard.v1.RetryPolicy.factor": "backoff_factor",
    "hansard.v1.Compact.up_to_event_id": "compact_up_to_event_id",
    "hansard.v1.Compact.message": "compaction_message",
    "hansard.v1.CompactionSettings.message": "compaction_message",
}
# In every list.
_PAGING: Final = {"page_size": "limit", "page_token": "page_key"}
_RAW_SUFFIX: Final = "_json"
_MILLISECONDS_SUFFIX: Final = "_ms"

NOT_SHOWN: Final = frozenset(
    {
        "hansard.v1.Thinking.provider_data",
        "hansard.v1.ToolInput.provider_data",
        "hansard.v1.AgentOutput.provider_data",
    }
)
"""Fields that are opaque to everybody but a model's provider; refused in requests too."""

DEFAULT_MEMBERS: Final = {
    "hansard.v1.Step.kind": "conversational",
    "hansard.v1.OutputParser.parser": "default",
}
"""What a discriminated oneof means when it is unset; replies say it."""

ALWAYS_SHOWN: Final = frozenset({"hansard.v1.Agent.first_step", "hansard.v1.Step.output_parser"})
"""Messages that clients require in replies, also when nobody set them."""

LISTED_EVENT_TYPES: Final = (
    "input_message",
    "artifact_upload",
    "thinking",
    "tool_input",
    "tool_output",
    "agent_output",
    "structured_output",
    "image_read",
    "compaction",
    "context_limit_exceeded",
    "session_interrupted",
)
"""The types of the contract that clients of the documented API know; others make them refuse a
whole list, so they are listed only to those who name them."""

HIDDEN_TOOLS: Final = frozenset({"client", "document_index"})
"""Tools that clients of the documented API do not know: not shown in their replies."""


@cache
def json_name(field: Any) -> str:
    """Return the name of the field in JSON and in queries."""
    renamed = _RENAMED.get(field.full_name)
    if renamed is not None:
        return renamed
    if field.name in _PAGING and field.containing_type.name.endswith("Request"):
        return _PAGING[field.name]
    if is_raw(field):
        return str(field.name).removesuffix(_RAW_SUFFIX)
    return str(field.name)


@cache
def is_raw(field: Any) -> bool:
    """Tell whether the field holds JSON as text, which HTTP shows as the JSON that it is."""
    return bool(field.type == field.TYPE_STRING and field.name.endswith(_RAW_SUFFIX))


@cache
def in_milliseconds(field: Any) -> bool:
    """Tell whether a Duration is a number of milliseconds over HTTP."""
    return json_name(field).endswith(_MILLISECONDS_SUFFIX)


@cache
def is_discriminated(oneof: Any) -> bool:
    """Tell whether the oneof is flattened, with its field's name as `type`."""
    return bool(oneof.GetOptions().Extensions[options_pb2.discriminated])


@cache
def discriminated(descriptor: Any) -> Any:
    """Return the flattened oneof of the message, or None."""
    return next((oneof for oneof in descriptor.oneofs if is_discriminated(oneof)), None)


@cache
def own_fields(descriptor: Any) -> tuple[Any, ...]:
    """Return the fields that stand under their own name: not members of a flattened oneof."""
    flattened = discriminated(descriptor)
    return tuple(
        field
        for field in descriptor.fields
        if (flattened is None or field.containing_oneof is not flattened)
        and field.full_name not in NOT_SHOWN
    )


@cache
def enum_names(enum: Any) -> dict[int, str]:
    """Return the values' names without their prefix, in lower case, by number."""
    prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).removeprefix("_")
    return {
        value.number: value.name.removeprefix(f"{prefix}_").lower()
        for value in enum.values
        if value.number
    }


def http_path(descriptor: Any, path: str) -> str:
    """Return the path of a field of a message as HTTP clients know it."""
    shown: list[str] = []
    current, is_key = descriptor, False
    for element in path.split("."):
        name, bracket, index = element.partition("[")
        field = None if current is None or is_key else current.fields_by_name.get(name)
        is_key = False
        if field is None:
            shown.append(element)
            continue
        current = field.message_type
        oneof = field.containing_oneof
        if current is not None and oneof is not None and is_discriminated(oneof):
            continue
        shown.append(json_name(field) + bracket + index)
        if current is not None and current.GetOptions().map_entry:
            is_key = not bracket
            current = current.fields_by_name["value"].message_type
    return ".".join(shown)
