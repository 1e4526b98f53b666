"""A provider's stream as parts of an answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from pydantic_ai.messages import (
    ModelResponsePart,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
)
from pydantic_ai.models import StreamedResponse
from pydantic_ai.usage import RequestUsage

from hansard_server.agents.api import (
    ModelFailed,
    ModelInterrupted,
    Part,
    TextDelta,
    TextEnd,
    TextKind,
    ToolCall,
)
from hansard_server.agents.json_text import NotJson, dump_json
from hansard_server.agents.models.providers.provider_data import ProviderData, encode
from hansard_server.domain.records import Usage

# What providers want back of a part's details; the rest is about the answer, such as citations.
_KEPT_DETAILS = ("thought_signature", "extra_content")


class StreamReader:
    """Reads one answer. From its first tool call on parts come when the answer is whole: half an
    answer with calls is none, and a provider may send several calls in turns.
    """

    def __init__(
        self, stream: StreamedResponse, *, provider: str, response_id: str, names: Mapping[str, str]
    ) -> None:
        """Read `stream`; `names` are the tools' own by those that the provider knows."""
        self._stream = stream
        self._provider = provider
        self._response_id = response_id
        self._names = names
        self._open: int | None = None
        self._last: ModelResponsePart | None = None
        self._called_at: int | None = None

    async def parts(self) -> AsyncGenerator[Part]:
        """Yield the parts. Raises ModelInterrupted for an answer that ends in the middle, and
        ModelFailed for one that the provider holds back; errors of the client as they are.
        """
        async for event in self._stream:
            for part in self._read(event):
                yield part
        self._check_whole()
        if self._last is not None:
            for part in self._end(self._last):
                yield part
        if self._called_at is not None:
            for whole in self._stream.get().parts[self._called_at :]:
                for part in self._whole(whole):
                    yield part

    def usage(self) -> Usage | None:
        """Return what the answer has cost up to now, as far as the provider has said."""
        return _usage(self._stream.usage)

    def _read(self, event: object) -> Iterator[Part]:
        match event:
            case PartStartEvent(index=index, part=part):
                if isinstance(part, ToolCallPart) and self._called_at is None:
                    self._called_at = index
                elif self._called_at is None and isinstance(part, TextPart | ThinkingPart):
                    self._open = index
                    yield from _delta(part, part.content)
            case PartDeltaEvent(index=index, delta=TextPartDelta() | ThinkingPartDelta() as delta):
                if index == self._open and delta.content_delta:
                    yield TextDelta(_kind(delta), delta.content_delta)
            case PartEndEvent(index=index, part=part, next_part_kind=after):
                if index == self._open:
                    self._open = None
                    if after is None:
                        # The stream is over, which does not say that the part is whole.
                        self._last = part
                    else:
                        yield from self._end(part)
            case _:
                pass

    def _whole(self, part: ModelResponsePart) -> Iterator[Part]:
        if isinstance(part, ToolCallPart):
            yield ToolCall(
                name=self._names.get(part.tool_name, part.tool_name),
                arguments_json=_arguments(part),
                provider_data=self._data(part, "tool_call", call_id=part.tool_call_id),
            )
        elif isinstance(part, TextPart | ThinkingPart):
            yield from _delta(part, part.content)
            yield from self._end(part)

    def _end(self, part: ModelResponsePart) -> Iterator[Part]:
        if isinstance(part, ThinkingPart):
            data = self._data(
                part,
                "thinking",
                signature=part.signature or "",
                part_id=part.id or "",
                characters=str(len(part.content)),
            )
            if part.content or part.signature:
                yield TextEnd(data)
        elif isinstance(part, TextPart) and (part.content or _details(part)):
            yield TextEnd(self._data(part, "text"))

    def _data(self, part: Any, kind: str, **more: str) -> bytes:
        return encode(
            ProviderData(
                provider=self._provider,
                response_id=self._response_id,
                kind=kind,
                details=_details(part),
                **more,
            )
        )

    def _check_whole(self) -> None:
        match self._stream.finish_reason:
            case None | "error":
                raise ModelInterrupted("The answer broke off before its end.")
            case "content_filter":
                raise ModelFailed("The provider holds the answer back (content filter).")
            case _:
                pass


def _kind(part: object) -> TextKind:
    thinking = isinstance(part, ThinkingPart | ThinkingPartDelta)
    return TextKind.THINKING if thinking else TextKind.OUTPUT


def _delta(part: TextPart | ThinkingPart, content: str) -> Iterator[Part]:
    if content:
        yield TextDelta(_kind(part), content)


def _details(part: Any) -> dict[str, Any]:
    details = part.provider_details or {}
    return {name: details[name] for name in _KEPT_DETAILS if details.get(name)}


def _arguments(part: ToolCallPart) -> str:
    if isinstance(part.args, str):
        return part.args.strip() or "{}"
    try:
        return dump_json(part.args or {})
    except NotJson as error:
        raise ModelInterrupted("The arguments of a call can't be read.") from error


def _usage(usage: RequestUsage) -> Usage | None:
    reasoning = usage.details.get("reasoning_tokens") or usage.details.get("thoughts_tokens") or 0
    thinking = usage.details.get("thinking_tokens") or 0
    found = Usage(usage.input_tokens, usage.output_tokens, reasoning or thinking)
    return found if found != Usage() else None
