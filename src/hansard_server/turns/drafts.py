"""Drafts: what callers send as events, checked and made ready for the record."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from hansard.v1 import artifact_pb2, event_pb2
from hansard_server.agents.json_text import NotJson, check_json
from hansard_server.domain.errors import (
    ArtifactNotFound,
    InvalidMessageContent,
    InvalidRequest,
    PayloadTooLarge,
)
from hansard_server.domain.limits import KIB, Limits
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

_MENTIONS_MAX = 1_000
_JSON_AT_ONCE_BYTES = 64 * KIB
"""So much JSON is checked where the request is; more of it in a thread, so that others go on."""

Reference = tuple[str, artifact_pb2.ArtifactReference | event_pb2.ImageRead]
"""What mentions an artifact by its `artifact_id`, and the path of the field where it does."""
_Text = tuple[str, str]
"""The path of a field, and the JSON that it holds."""


async def fill_references(
    store: Store, session: tuple[str, str], references: Sequence[Reference], now_us: int
) -> None:
    """Write filename, type and size into references, from the session's artifacts at this time.

    Raises ArtifactNotFound naming the field.
    """
    if not references:
        return
    ids = sorted({reference.artifact_id for _, reference in references})
    artifacts = await store.read(lambda tx: tx.get_artifacts(*session, ids))
    for path, reference in references:
        artifact = artifacts.get(reference.artifact_id)
        if artifact is None or artifact.has_expired(now_us):
            raise ArtifactNotFound.of_field(
                f"{path}.artifact_id", f"there is no artifact {reference.artifact_id!r}"
            )
        if isinstance(reference, artifact_pb2.ArtifactReference):
            _fill(reference, artifact)


def message_references(message: event_pb2.InputMessage, path: str) -> list[Reference]:
    """Return the artifacts that a message mentions; `path` is the message's field."""
    return [
        (f"{path}.messages[{index}].artifact", part.artifact)
        for index, part in enumerate(message.messages)
        if part.HasField("artifact")
    ]


def draft_references(drafts: Iterable[event_pb2.EventDraft]) -> list[Reference]:
    """Return what mentions artifacts in the drafts."""
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
        elif draft.HasField("image_read"):
            references.append((f"{path}.image_read", draft.image_read))
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


async def check_drafts(drafts: Sequence[event_pb2.EventDraft], limits: Limits) -> None:
    """Do nothing, or raise for a draft that can't be stored; defaults are filled in.

    Raises InvalidMessageContent, PayloadTooLarge, InvalidRequest for too many artifacts.
    """
    _check_mentions(drafts)
    texts: list[_Text] = []
    for index, draft in enumerate(drafts):
        name = draft.WhichOneof("payload") or ""
        path = f"events[{index}].{name}"
        if name in _SERVICE_KINDS:
            raise InvalidMessageContent.of_field(path, "only the service writes such events")
        if name == "input_message":
            check_input(draft.input_message, path, limits)
        if name in _JSON_FIELDS:
            field = _JSON_FIELDS[name]
            texts.append((f"{path}.{field}", getattr(getattr(draft, name), field)))
            _check_size(*texts[-1], limits)
        if name == "tool_output":
            _check_outcome(draft.tool_output, path)
    if sum(len(text) for _, text in texts) > _JSON_AT_ONCE_BYTES:
        await asyncio.to_thread(_check_texts, texts)
    else:
        _check_texts(texts)


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


def _check_mentions(drafts: Iterable[event_pb2.EventDraft]) -> None:
    # By the lengths of lists: whoever mentions too many must not make them be walked through.
    mentions = 0
    for index, draft in enumerate(drafts):
        if draft.HasField("artifact_upload"):
            mentions += len(draft.artifact_upload.artifacts)
        elif draft.HasField("input_message"):
            parts = draft.input_message.messages
            mentions += sum(part.HasField("artifact") for part in parts)
        else:
            mentions += 1 if draft.HasField("image_read") else 0
            mentions += 1 if draft.tool_output.HasField("offloaded_artifact") else 0
        if mentions > _MENTIONS_MAX:
            raise InvalidRequest.of_field(
                f"events[{index}]", f"one call mentions artifacts {_MENTIONS_MAX} times at most"
            )


def _check_size(path: str, text: str, limits: Limits) -> None:
    # The event is larger still, and would be refused for that after the work of checking it.
    if len(text) > limits.event_max_bytes:
        raise PayloadTooLarge.of_field(
            path, f"is {len(text)} characters long; the event may be {limits.event_max_bytes} bytes"
        )


def _check_texts(texts: Iterable[_Text]) -> None:
    for path, text in texts:
        try:
            check_json(text)
        except NotJson as error:
            raise InvalidMessageContent.of_field(path, str(error)) from None


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
