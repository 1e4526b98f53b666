"""Drafts: what callers send as events, checked and made ready for the record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hansard.v1 import artifact_pb2, event_pb2
from hansard_server.agents.json_text import NotJson, parse_json
from hansard_server.domain.errors import (
    ArtifactNotFound,
    InvalidMessageContent,
    PayloadTooLarge,
)
from hansard_server.domain.limits import Limits
from hansard_server.domain.records import ArtifactRecord
from hansard_server.repository.api import Store
from hansard_server.repository.commands import Draft
from hansard_server.turns.payloads import make_draft

_SERVICE_KINDS = frozenset({"context_limit_exceeded", "compaction", "session_interrupted"})
_JSON_FIELDS = {
    "tool_input": "tool_input_json",
    "tool_output": "tool_output_json",
    "structured_output": "content_json",
    "custom": "data_json",
}

Reference = tuple[str, artifact_pb2.ArtifactReference]
"""An artifact that a caller mentions, and the path of the field where it does."""


async def fill_references(
    store: Store, session: tuple[str, str], references: Sequence[Reference]
) -> None:
    """Write filename, type and size into references, from the session's artifacts.

    Raises ArtifactNotFound naming the field.
    """
    if not references:
        return
    ids = sorted({reference.artifact_id for _, reference in references})
    artifacts = await store.read(lambda tx: tx.get_artifacts(*session, ids))
    for path, reference in references:
        artifact = artifacts.get(reference.artifact_id)
        if artifact is None:
            raise ArtifactNotFound.of_field(
                f"{path}.artifact_id", f"there is no artifact {reference.artifact_id!r}"
            )
        _fill(reference, artifact)


def message_references(message: event_pb2.InputMessage, path: str) -> list[Reference]:
    """Return the artifacts that a message mentions; `path` is the message's field."""
    return [
        (f"{path}.messages[{index}].artifact", part.artifact)
        for index, part in enumerate(message.messages)
        if part.HasField("artifact")
    ]


def draft_references(drafts: Iterable[event_pb2.EventDraft]) -> list[Reference]:
    """Return the artifacts that drafts mention, but those of `image_read`, which is an id only."""
    references: list[Reference] = []
    for index, draft in enumerate(drafts):
        path = f"events[{index}]"
        if draft.HasField("input_message"):
            references += message_references(draft.input_message, f"{path}.input_message")
        elif draft.HasField("artifact_upload"):
            references += [
                (f"{path}.artifact_upload.artifacts[{number}]", artifact)
                for number, artifact in enumerate(draft.artifact_upload.artifacts)
            ]
        elif draft.HasField("tool_output") and draft.tool_output.HasField("offloaded_artifact"):
            references.append(
                (f"{path}.tool_output.offloaded_artifact", draft.tool_output.offloaded_artifact)
            )
    return references


def check_input(message: event_pb2.InputMessage, path: str, limits: Limits) -> None:
    """Raise InvalidMessageContent for an input that says nothing, PayloadTooLarge if long."""
    text_bytes = sum(len(part.text.content.encode()) for part in message.messages)
    if text_bytes > limits.input_max_bytes:
        raise PayloadTooLarge.of_field(
            f"{path}.messages",
            f"the text is {text_bytes} bytes, and may be {limits.input_max_bytes}",
        )
    has_artifact = any(part.HasField("artifact") for part in message.messages)
    if not has_artifact and not any(part.text.content.strip() for part in message.messages):
        raise InvalidMessageContent.of_field(f"{path}.messages", "must say something")


def check_drafts(drafts: Sequence[event_pb2.EventDraft], limits: Limits) -> None:
    """Raise InvalidMessageContent or PayloadTooLarge for the first draft that can't be stored."""
    for index, draft in enumerate(drafts):
        name = draft.WhichOneof("payload") or ""
        path = f"events[{index}].{name}"
        if name in _SERVICE_KINDS:
            raise InvalidMessageContent.of_field(path, "only the service writes such events")
        if name == "input_message":
            check_input(draft.input_message, path, limits)
        if name in _JSON_FIELDS:
            _check_json(getattr(getattr(draft, name), _JSON_FIELDS[name]), path, _JSON_FIELDS[name])
        if name == "tool_output":
            _check_outcome(draft.tool_output, path)


def make_drafts(messages: Sequence[event_pb2.EventDraft], limits: Limits) -> tuple[Draft, ...]:
    """Return the drafts for the store. Raises PayloadTooLarge for one over the limit."""
    drafts = []
    for index, message in enumerate(messages):
        draft = make_draft(message)
        if len(draft.payload) > limits.event_max_bytes:
            raise PayloadTooLarge.of_field(
                f"events[{index}]",
                f"the event is {len(draft.payload)} bytes, and may be {limits.event_max_bytes}",
            )
        drafts.append(draft)
    return tuple(drafts)


def _check_json(text: str, path: str, field: str) -> None:
    try:
        parse_json(text)
    except NotJson as error:
        raise InvalidMessageContent.of_field(f"{path}.{field}", f"is not JSON: {error}") from None


def _check_outcome(output: event_pb2.ToolOutput, path: str) -> None:
    completed = event_pb2.TOOL_OUTCOME_COMPLETED
    if output.outcome == event_pb2.TOOL_OUTCOME_UNSPECIFIED:
        output.outcome = event_pb2.TOOL_OUTCOME_FAILED if output.error else completed
    elif output.error == (output.outcome == completed):
        raise InvalidMessageContent.of_field(
            f"{path}.outcome", "COMPLETED and `error` exclude each other, and one must hold"
        )


def _fill(reference: artifact_pb2.ArtifactReference, artifact: ArtifactRecord) -> None:
    reference.filename = artifact.filename
    reference.mime_type = artifact.mime_type
    reference.size_bytes = artifact.size_bytes
