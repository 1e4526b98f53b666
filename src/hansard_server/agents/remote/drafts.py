"""Drafts of agents elsewhere: checked, and made what goes on record."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message
from protovalidate import ValidationError, Validator, Violation

from hansard.runtime.v1 import agent_runtime_service_pb2 as runtime_pb2
from hansard.v1 import agent_pb2, event_pb2
from hansard_server.agents.api import ModelFailed, SessionFiles
from hansard_server.agents.json_text import NotJson, check_json
from hansard_server.agents.limits import AgentLimits
from hansard_server.domain.errors import ArtifactNotFound
from hansard_server.domain.keys import make_tool_call_id

_JSON_FIELDS = {
    "tool_input": "tool_input_json",
    "tool_output": "tool_output_json",
    "structured_output": "content_json",
    "custom": "data_json",
}
_FAULTS_SHOWN = 3


class ProtocolBroken(Exception):  # noqa: N818 - reads as what happened
    """The agent has said what it may not; the message says what, for people."""


class Drafts:
    """Makes events of what an agent says in one call of RunTurn. Calls of its own tools get ids."""

    def __init__(self, agent: agent_pb2.Agent, files: SessionFiles, limits: AgentLimits) -> None:
        """Check what `agent` says, in a session with these files."""
        self._agent = agent
        self._files = files
        self._limits = limits
        self._validator = Validator()
        self._open: dict[str, event_pb2.ToolInput] = {}
        self._seen: set[str] = set()

    def check(self, message: Message) -> None:
        """Return when the message keeps to the contract's rules. Raises ProtocolBroken."""
        try:
            self._validator.validate(message)
        except ValidationError as error:
            faults = error.violations[:_FAULTS_SHOWN]
            raise ProtocolBroken("; ".join(map(_fault, faults))) from None

    async def to_event(self, draft: runtime_pb2.Draft) -> event_pb2.Event:
        """Return the event of a draft, without id and place. Raises ProtocolBroken."""
        name = draft.WhichOneof("payload")
        if name is None:
            raise ProtocolBroken("a draft has no payload that agents may write")
        if draft.ByteSize() > self._limits.event_max_bytes:
            raise ProtocolBroken(f"a draft of {name} is larger than an event may be")
        event = event_pb2.Event.FromString(draft.SerializeToString())
        if name in _JSON_FIELDS:
            self._check_json(name, getattr(getattr(event, name), _JSON_FIELDS[name]))
        match name:
            case "thinking" | "agent_output":
                self._check_text(getattr(event, name), name)
            case "tool_input":
                self._open_call(event.tool_input)
            case "tool_output":
                self._close_call(event.tool_output)
            case "image_read":
                await self._check_image(event.image_read)
        return event

    def check_provider_data(self, data: bytes) -> None:
        """Return when an event has room for it. Raises ProtocolBroken."""
        _as_broken(lambda: self._limits.check_provider_data(data))

    def _check_json(self, name: str, text: str) -> None:
        if len(text.encode()) > self._limits.text_max_bytes:
            raise ProtocolBroken(
                f"the JSON of a {name} has more than {self._limits.text_max_bytes:,} bytes"
            )
        try:
            check_json(text)
        except NotJson as error:
            raise ProtocolBroken(f"the JSON of a {name} {error}") from None

    def _check_text(self, text: event_pb2.Thinking | event_pb2.AgentOutput, name: str) -> None:
        if text.partial:
            raise ProtocolBroken(f"only the service says that a {name} is partial")
        if len(text.content.encode()) > self._limits.text_max_bytes:
            raise ProtocolBroken(f"a {name} has more than {self._limits.text_max_bytes:,} bytes")
        self.check_provider_data(text.provider_data)

    def _open_call(self, call: event_pb2.ToolInput) -> None:
        if call.tool_configuration_name:
            raise ProtocolBroken(
                "tool_configuration_name names Hansard's tools, which are called by tool_calls"
            )
        if call.tool_call_id in self._seen:
            raise ProtocolBroken(f"there was a tool call {call.tool_call_id[:64]!r} already")
        if len(self._open) == self._limits.calls_per_step:
            raise ProtocolBroken(f"more than {len(self._open)} tool calls are open")
        self.check_provider_data(call.provider_data)
        self._seen.add(call.tool_call_id)
        # The agent's own id may be in use in the session: nobody else gives ids there.
        name, call.tool_call_id = call.tool_call_id, make_tool_call_id()
        self._open[name] = call

    def _close_call(self, output: event_pb2.ToolOutput) -> None:
        call = self._open.pop(output.tool_call_id, None)
        if call is None:
            raise ProtocolBroken(f"no tool call {output.tool_call_id[:64]!r} is open")
        if output.HasField("offloaded_artifact"):
            raise ProtocolBroken("offloaded_artifact is written by the service alone")
        output.tool_call_id = call.tool_call_id
        output.tool_configuration_name = ""
        output.tool_name = call.tool_name
        completed = event_pb2.TOOL_OUTCOME_COMPLETED
        if output.outcome == event_pb2.TOOL_OUTCOME_UNSPECIFIED:
            output.outcome = event_pb2.TOOL_OUTCOME_FAILED if output.error else completed
        elif output.error == (output.outcome == completed):
            raise ProtocolBroken("COMPLETED and `error` exclude each other, and one must hold")

    async def _check_image(self, image: event_pb2.ImageRead) -> None:
        try:
            await self._files.get_file(image.artifact_id)
        except ArtifactNotFound:
            raise ProtocolBroken(f"there is no artifact {image.artifact_id}") from None


def _fault(violation: Violation) -> str:
    path = violation.proto.field
    names = [part.field_name for part in path.elements] if path is not None else []
    return f"{'.'.join(names)}: {violation.proto.message}"


def _as_broken(check: Callable[[], None]) -> None:
    try:
        check()
    except ModelFailed as error:
        raise ProtocolBroken(str(error)) from None
