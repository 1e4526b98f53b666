"""Events to messages: what a provider gets of a history. Pure.

Whatever the events are, the messages keep the rules that providers refuse requests by:

- user and model take turns, the user speaks first and last;
- what a model's message calls is answered, each call once, at the beginning of the next one;
- call ids are unique; no text is blank; no thought stands at the end of a message, and none without
  its signature, or in an answer that another provider gave.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)

from hansard.v1 import event_pb2
from hansard_server.agents.json_text import NotJson, parse_json
from hansard_server.agents.models.providers.described import describe_event
from hansard_server.agents.models.providers.provider_data import ProviderData, decode
from hansard_server.agents.models.providers.rules import ProviderRules, wire_call_id, wire_name
from hansard_server.domain.values import dataclass

GO_ON = "[Go on from here.]"
"""Said to a model where its answer broke off, since most take no answer to finish."""
NOTHING_BEFORE = "[What was said before is not shown.]"
_DETAILS = {event_pb2.IMAGE_DETAIL_LOW: "low", event_pb2.IMAGE_DETAIL_HIGH: "high"}
_NO_OUTPUT = '{"error":"there is no output of this call on record"}'


@dataclass(frozen=True, slots=True)
class Image:
    """An image as the provider gets it."""

    mime_type: str
    data: bytes


@dataclass(slots=True)
class _Answer:
    """What one model call said. `response_id` is None as long as no event tells it."""

    turn_id: str
    response_id: str | None
    parts: list[ModelResponsePart] = field(default_factory=list)

    @property
    def calls(self) -> list[ToolCallPart]:
        return [part for part in self.parts if isinstance(part, ToolCallPart)]


@dataclass(slots=True)
class _Said:
    """What the model is told: outputs of its calls, and then everything else."""

    outputs: dict[str, ToolReturnPart] = field(default_factory=dict)
    content: list[UserContent] = field(default_factory=list)


def to_messages(
    history: Sequence[event_pb2.Event],
    rules: ProviderRules,
    images: Mapping[str, Image] | None = None,
) -> list[ModelMessage]:
    """Return the messages that say what the events say, in the order that model_history gives.

    `images`: by artifact id, those that are shown where an image_read stands; the others, and all
    of them to models that can't see, are told of in words.
    """
    reader = _Reader(rules, images or {}, _newest_input(history))
    for place, event in enumerate(history):
        reader.take(place, event)
    return _messages(reader.finish(), rules)


def _newest_input(history: Sequence[event_pb2.Event]) -> int:
    places = [i for i, event in enumerate(history) if event.HasField("input_message")]
    return places[-1] if places else 0


class _Reader:
    """Sorts events into what the model said and what it was told."""

    def __init__(
        self, rules: ProviderRules, images: Mapping[str, Image], newest_input: int
    ) -> None:
        self._rules = rules
        self._images = images
        self._newest_input = newest_input
        self._entries: list[_Answer | _Said] = []
        self._wire_ids: dict[str, str] = {}
        self._taken: set[str] = set()
        # Said while calls were open: it comes after their outputs.
        self._held: list[UserContent] = []
        # By turn: a thought that the next event goes on with.
        self._begun: dict[str, str] = {}

    def take(self, place: int, event: event_pb2.Event) -> None:
        kind = event.WhichOneof("payload")
        if kind != "thinking":
            self._begun.clear()
        match kind:
            case "thinking":
                self._think(place, event)
            case "agent_output":
                output = event.agent_output
                self._answer(event, output.provider_data).parts.extend(
                    self._texts(output.content, output.provider_data)
                )
            case "structured_output":
                content = event.structured_output.content_json
                self._answer(event, b"").parts.append(TextPart(content))
            case "tool_input":
                self._call(event)
            case "tool_output":
                self._output(event.tool_output)
            case "image_read":
                self._tell(self._image(event.image_read))
            case _:
                self._tell(describe_event(event))

    def finish(self) -> list[_Answer | _Said]:
        self._release()
        return self._entries

    def _think(self, place: int, event: event_pb2.Event) -> None:
        thinking = event.thinking
        data = self._own(thinking.provider_data)
        begun = self._begun.pop(event.turn_id, "")
        content = begun + thinking.content
        if data is None:
            # Without its signature nobody takes it. The beginning of a long thought, which became
            # several events, has it in its last one.
            if not thinking.provider_data and not thinking.partial:
                self._begun = {event.turn_id: content}
            return
        if data.characters and data.characters != str(len(content)):
            # What stands before it is another thought, or its own beginning was hidden: then the
            # signature is good for nothing any more.
            content = thinking.content
            if data.characters != str(len(content)):
                return
        answer = self._answer(event, thinking.provider_data)
        if data.kind == "text":
            answer.parts.extend(self._texts(content, thinking.provider_data))
            return
        if self._rules.reasoning_of_turn_only and place < self._newest_input:
            return
        answer.parts.append(
            ThinkingPart(
                content,
                id=data.part_id or None,
                signature=data.signature or None,
                provider_name=data.provider,
                provider_details=dict(data.details) or None,
            )
        )

    def _texts(self, content: str, provider_data: bytes) -> list[TextPart]:
        data = self._own(provider_data)
        details = dict(data.details) if data is not None else {}
        if not content.strip() and not details:
            return []
        return [
            TextPart(
                content,
                provider_name=self._rules.provider if details else None,
                provider_details=details or None,
            )
        ]

    def _call(self, event: event_pb2.Event) -> None:
        call = event.tool_input
        answer = self._answer(event, call.provider_data)
        data = self._own(call.provider_data)
        wire_id = wire_call_id(data.call_id if data else call.tool_call_id, self._taken)
        self._wire_ids[call.tool_call_id] = wire_id
        details = dict(data.details) if data is not None else {}
        answer.parts.append(
            ToolCallPart(
                wire_name(call.tool_configuration_name),
                call.tool_input_json,
                wire_id,
                provider_name=self._rules.provider if details else None,
                provider_details=details or None,
            )
        )

    def _output(self, output: event_pb2.ToolOutput) -> None:
        wire_id = self._wire_ids.get(output.tool_call_id)
        if wire_id is None or not self._entries:
            return
        last = self._entries[-1]
        if isinstance(last, _Answer):
            last = _Said()
            self._entries.append(last)
        content: Any = output.tool_output_json
        if self._rules.outputs_are_objects:
            with contextlib.suppress(NotJson):
                content = parse_json(content)
        last.outputs[wire_id] = ToolReturnPart(
            wire_name(output.tool_configuration_name),
            content,
            wire_id,
            outcome="failed" if output.error and self._rules.marks_errors else "success",
        )

    def _image(self, read: event_pb2.ImageRead) -> list[UserContent]:
        image = self._images.get(read.artifact_id)
        if not self._rules.sees_images:
            return [f"[The image {read.artifact_id}, which this model can't see.]"]
        if image is None:
            return [f"[The image {read.artifact_id} is no longer shown.]"]
        detail = {"detail": _DETAILS.get(read.detail, "auto")}
        return [
            f"[The image {read.artifact_id}:]",
            BinaryContent(
                image.data,
                media_type=image.mime_type,
                vendor_metadata=detail if self._rules.takes_image_detail else None,
            ),
        ]

    def _own(self, provider_data: bytes) -> ProviderData | None:
        data = decode(provider_data)
        return data if data is not None and data.provider == self._rules.provider else None

    def _answer(self, event: event_pb2.Event, provider_data: bytes) -> _Answer:
        """Return the answer that the event belongs to, the open one or a new one."""
        data = decode(provider_data)
        response_id = None if data is None else data.response_id
        last = self._entries[-1] if self._entries else None
        if (
            isinstance(last, _Answer)
            and last.turn_id == event.turn_id
            and (response_id is None or last.response_id in {None, response_id})
        ):
            last.response_id = last.response_id or response_id
            return last
        self._release()
        answer = _Answer(event.turn_id, response_id)
        self._entries.append(answer)
        return answer

    def _tell(self, content: Sequence[UserContent]) -> None:
        last = self._entries[-1] if self._entries else None
        if isinstance(last, _Answer) and last.calls:
            self._held.extend(content)
        elif isinstance(last, _Said):
            self._release()
            last.content.extend(content)
        elif content:
            self._entries.append(_Said(content=list(content)))

    def _release(self) -> None:
        held, self._held = self._held, []
        if held and isinstance(self._entries[-1], _Said):
            self._entries[-1].content.extend(held)
        elif held:
            self._entries.append(_Said(content=held))


def _messages(entries: Sequence[_Answer | _Said], rules: ProviderRules) -> list[ModelMessage]:
    """Return the entries as messages that take turns."""
    messages: list[ModelMessage] = []
    said = _Said()
    calls: list[ToolCallPart] = []
    for entry in entries:
        if isinstance(entry, _Said):
            said.outputs.update(entry.outputs)
            said.content.extend(entry.content)
            continue
        parts = _speakable(entry.parts)
        if not parts:
            continue
        messages.append(_request(said, calls, GO_ON if messages else NOTHING_BEFORE))
        own = any(getattr(part, "provider_name", None) for part in parts)
        messages.append(ModelResponse(parts, provider_name=rules.provider if own else None))
        said = _Said()
        calls = [part for part in parts if isinstance(part, ToolCallPart)]
    messages.append(_request(said, calls, GO_ON if messages else NOTHING_BEFORE))
    return messages


def _speakable(parts: Sequence[ModelResponsePart]) -> list[ModelResponsePart]:
    """Return the parts without the thoughts at their end, of which nothing came: the call that
    had them was cut off, and is made again.
    """
    end = len(parts)
    while end and isinstance(parts[end - 1], ThinkingPart):
        end -= 1
    return list(parts[:end])


def _request(said: _Said, calls: Sequence[ToolCallPart], nothing: str) -> ModelRequest:
    outputs = [
        said.outputs.get(call.tool_call_id)
        or ToolReturnPart(call.tool_name, _NO_OUTPUT, call.tool_call_id)
        for call in calls
    ]
    content = said.content or ([] if outputs else [nothing])
    # One text is the plainest form of a message, which every server takes.
    texts = [item for item in content if isinstance(item, str)]
    prompt = "\n\n".join(texts) if len(texts) == len(content) else content
    return ModelRequest([*outputs, *([UserPromptPart(prompt)] if content else [])])
