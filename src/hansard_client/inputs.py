"""What is sent to a session, in short."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from hansard.v1 import event_service_pb2 as wire
from hansard.v1.artifact_pb2 import ArtifactReference
from hansard.v1.event_pb2 import InputMessage, MessagePart, TextPart
from hansard.v1.turn_pb2 import Compact

Input: TypeAlias = (
    str | InputMessage | wire.ToolResults | Sequence[wire.ToolResult] | wire.Interrupt | Compact
)
"""A text, or an input of the contract. Results come from `tool_output`, `approve`, `reject`."""

WhenBusy: TypeAlias = Literal["queue", "reject", "steer", "interrupt"]
"""What is done with an input while a turn is unfinished; by default it waits for its own turn."""

_WHEN_BUSY = {
    None: wire.WHEN_BUSY_UNSPECIFIED,
    "queue": wire.WHEN_BUSY_QUEUE,
    "reject": wire.WHEN_BUSY_REJECT,
    "steer": wire.WHEN_BUSY_STEER,
    "interrupt": wire.WHEN_BUSY_INTERRUPT,
}


def message(text: str = "", *, attach: Iterable[str] = ()) -> InputMessage:
    """Return the message that says the text and shows these artifacts of the session, by id."""
    parts = [MessagePart(text=TextPart(content=text))] if text else []
    parts += [MessagePart(artifact=ArtifactReference(artifact_id=id_)) for id_ in attach]
    return InputMessage(messages=parts)


def tool_output(
    tool_call_id: str, tool_output_json: str, *, error: bool = False
) -> wire.ToolResult:
    """Return what a tool that the client ran gave: JSON, kept byte for byte."""
    output = wire.ToolResultOutput(tool_output_json=tool_output_json, error=error)
    return wire.ToolResult(tool_call_id=tool_call_id, output=output)


def approve(tool_call_id: str) -> wire.ToolResult:
    """Return the decision that a call may run."""
    return wire.ToolResult(tool_call_id=tool_call_id, approve=wire.ToolApproval())


def reject(tool_call_id: str, reason: str = "") -> wire.ToolResult:
    """Return the decision that a call may not run, and why; the model is told."""
    return wire.ToolResult(tool_call_id=tool_call_id, reject=wire.ToolRejection(reason=reason))


def fill(request: wire.SendEventRequest, given: Input, when_busy: WhenBusy | None) -> None:
    """Put the input into the request."""
    request.when_busy = _WHEN_BUSY[when_busy]
    match given:
        case str():
            request.input_message.CopyFrom(message(given))
        case InputMessage():
            request.input_message.CopyFrom(given)
        case wire.ToolResults():
            request.tool_results.CopyFrom(given)
        case wire.Interrupt():
            request.interrupt.CopyFrom(given)
        case Compact():
            request.compact.CopyFrom(given)
        case _:
            request.tool_results.results.extend(given)
