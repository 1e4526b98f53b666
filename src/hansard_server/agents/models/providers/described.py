"""Events that models have no message for, in words."""

from __future__ import annotations

from hansard.v1 import artifact_pb2, event_pb2

_EMPTY = "[An empty message.]"


def describe_event(event: event_pb2.Event) -> list[str]:
    """Return what a model is told of an event that is not its own; nothing for those that it does
    not see.
    """
    match event.WhichOneof("payload"):
        case "input_message":
            return _message(event.input_message)
        case "artifact_upload":
            files = ", ".join(_file(file) for file in event.artifact_upload.artifacts)
            return [f"[Files came into the session: {files}]"]
        case "compaction":
            summary = event.compaction.summary_text
            return [f"[Summary of what was said before:]\n{summary}"]
        case "session_interrupted":
            reason = event.session_interrupted.reason
            return [f"[The answer was interrupted{f': {reason}' if reason.strip() else '.'}]"]
        case _:
            return []


def _message(message: event_pb2.InputMessage) -> list[str]:
    texts = []
    for part in message.messages:
        if part.HasField("artifact"):
            texts.append(f"[A file of the session: {_file(part.artifact)}]")
        elif part.text.content.strip():
            texts.append(part.text.content)
    return texts or [_EMPTY]


def _file(file: artifact_pb2.ArtifactReference) -> str:
    about = [file.artifact_id]
    if file.mime_type:
        about.append(file.mime_type)
    if file.size_bytes:
        about.append(f"{file.size_bytes:,} bytes")
    return f"{file.filename} ({', '.join(about)})" if file.filename else " ".join(about)
