"""`hansard/scripted`: says exactly what its parameters say, for tests and benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from hansard.v1 import event_pb2
from hansard_server.agents.api import (
    Json,
    ModelFailed,
    ModelRequest,
    Part,
    TextDelta,
    TextEnd,
    TextKind,
    ToolCall,
)
from hansard_server.agents.json_text import dump_json
from hansard_server.agents.models.script import (
    Fail,
    Item,
    Pause,
    Script,
    Text,
    parse_script,
    split_segments,
)
from hansard_server.domain.records import Usage

_NO_SCRIPT = "hansard/scripted has nothing to say: model.parameters holds no script."


_KEPT_SCRIPTS = 16


class ScriptedModel:
    """The step and the history say where in the script it is."""

    context_tokens: int | None = None

    def __init__(self) -> None:
        # With the parameters themselves, so that no others have their place in memory.
        self._scripts: dict[int, tuple[Mapping[str, Json], Script]] = {}

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        """Raise InvalidAgentConfiguration when the parameters are no script."""
        parse_script(parameters)

    def needs_history(self, parameters: Mapping[str, Json]) -> bool:
        """Return whether the script says what the model was given."""
        return parameters.get("echo") == "history"

    async def respond(self, request: ModelRequest) -> AsyncIterator[Part]:
        """Yield what the script says for this step."""
        for item in _items(self._script(request.parameters), request):
            match item:
                case Text():
                    for delta in item.deltas:
                        if item.pause_s:
                            await asyncio.sleep(item.pause_s)
                        yield TextDelta(item.kind, delta)
                    yield TextEnd()
                case Pause(pause_s):
                    if pause_s:
                        await asyncio.sleep(pause_s)
                case Fail(message):
                    raise ModelFailed(message)
                case ToolCall() | Usage():
                    yield item

    def _script(self, parameters: Mapping[str, Json]) -> Script:
        """Return the script of these parameters; turns of an agent have the same object."""
        known = self._scripts.get(id(parameters))
        if known is not None and known[0] is parameters:
            return known[1]
        script = parse_script(parameters)
        if len(self._scripts) == _KEPT_SCRIPTS:
            del self._scripts[next(iter(self._scripts))]
        self._scripts[id(parameters)] = (parameters, script)
        return script


def _items(script: Script, request: ModelRequest) -> Sequence[Item]:
    """Return what the script says for the request."""
    if request.summary_of:
        return script.summary or _count(request.summary_of)
    if script.echo is not None:
        return _echo(script.echo, request)
    if script.items:
        segments = split_segments(script.items)
        items = segments[request.step] if request.step < len(segments) else ()
        return _after_texts(items, _texts_stored(request.history))
    return (Text(TextKind.OUTPUT, (_NO_SCRIPT,), 0),)


def _texts_stored(history: Sequence[event_pb2.Event]) -> int:
    """Return how many texts of this step are on record: more than none after a crash only."""
    turn_id = next((event.turn_id for event in reversed(history) if event.turn_id), None)
    texts = 0
    for event in reversed(history):
        if event.turn_id != turn_id:
            continue
        kind = event.WhichOneof("payload")
        if kind in ("tool_output", "input_message"):
            break
        texts += kind in ("thinking", "agent_output")
    return texts if turn_id else 0


def _after_texts(items: Sequence[Item], texts: int) -> tuple[Item, ...]:
    """Return what comes after the first `texts` texts."""
    rest = list(items)
    while texts and any(isinstance(item, Text) for item in rest):
        texts -= isinstance(rest.pop(0), Text)
    return tuple(rest)


def _count(events: Sequence[event_pb2.Event]) -> tuple[Item, ...]:
    return (Text(TextKind.OUTPUT, (f"{len(events)} events were summarised.",), 0),)


def _echo(what: str, request: ModelRequest) -> tuple[Item, ...]:
    match what:
        case "instructions":
            lines = list(request.instructions)
        case "tools":
            lines = [
                f"{tool.name}: {tool.description} {dump_json(tool.input_schema)}"
                for tool in request.tools
            ]
        case _:
            lines = list(_history_lines(request.history))
    shown = [line + "\n" for line in lines] or ["(none)\n"]
    answer = f"I was given {len(lines)} {what if what != 'history' else 'events'}."
    return (
        Text(TextKind.THINKING, tuple(shown), 0),
        Text(TextKind.OUTPUT, (answer,), 0),
    )


def _history_lines(  # noqa: C901 - one line for each kind
    history: Sequence[event_pb2.Event],
) -> Iterator[str]:
    for event in history:
        kind = event.WhichOneof("payload")
        match kind:
            case "input_message":
                parts = event.input_message.messages
                content = " ".join(
                    part.text.content if part.HasField("text") else f"[{part.artifact.artifact_id}]"
                    for part in parts
                )
            case "thinking":
                content = event.thinking.content
            case "agent_output":
                content = event.agent_output.content
            case "tool_input":
                call = event.tool_input
                content = f"{call.tool_configuration_name} {call.tool_input_json}"
            case "tool_output":
                output = event.tool_output
                outcome = event_pb2.ToolOutcome.Name(output.outcome).removeprefix("TOOL_OUTCOME_")
                content = f"{output.tool_configuration_name} {outcome} {output.tool_output_json}"
            case "artifact_upload":
                content = " ".join(file.filename for file in event.artifact_upload.artifacts)
            case "session_interrupted":
                content = event.session_interrupted.reason
            case "structured_output":
                content = event.structured_output.content_json
            case "compaction":
                content = event.compaction.summary_text
            case _:
                content = ""
        yield f"{event.sequence} {kind}: {content}".rstrip()
