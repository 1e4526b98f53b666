"""Tokens: how many a model will count, estimated without its tokenizer and rather too high."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hansard.v1 import event_pb2
from hansard_server.agents.api import Json, OutputSchema, ToolDescription
from hansard_server.agents.json_text import dump_json

# Tokens for each byte of a kind. English prose has about 4.5 letters a token, and gets 3 here;
# digits are single tokens for some models, as punctuation is in JSON; a character of Chinese
# (three bytes) is one token or two, one of Cyrillic (two bytes) hardly ever a whole one.
_OF_LETTER = 1 / 3
_OF_SPACE = 1 / 4
_OF_OTHER_BYTE = 1 / 2
_LETTERS = bytes(range(ord("a"), ord("z") + 1)) + bytes(range(ord("A"), ord("Z") + 1))
_SPACES = b" \t\r\n"
_OTHER_BYTES = bytes(range(0x80, 0x100))
LEAST_PER_BYTE = _OF_SPACE
"""No text has fewer tokens a byte than this, by the estimate."""

_OF_EVENT = 8
"""Roles, ids and separators around an event."""
_OF_TOOL = 16
_OF_IMAGE = 2_000
_OF_SMALL_IMAGE = 300


def estimate_text(text: str | bytes) -> int:
    """Return how many tokens a text has at most, by and large.

    A text of random letters and digits, such as base64, may have half as many again.
    """
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    rest = data.translate(None, _LETTERS)
    letters = len(data) - len(rest)
    others = len(rest) - len(rest := rest.translate(None, _OTHER_BYTES))
    spaces = len(rest) - len(rest := rest.translate(None, _SPACES))
    return math.ceil(
        letters * _OF_LETTER + others * _OF_OTHER_BYTE + spaces * _OF_SPACE + len(rest)
    )


def estimate_event(event: event_pb2.Event) -> int:  # noqa: C901 - one line for each kind
    """Return how many tokens an event has for a model that gets it."""
    match event.WhichOneof("payload"):
        case "input_message":
            texts: Sequence[str | bytes] = [
                part.text.content
                if part.HasField("text")
                else f"{part.artifact.artifact_id}{part.artifact.filename}{part.artifact.mime_type}"
                for part in event.input_message.messages
            ]
        case "thinking":
            texts = (event.thinking.content, event.thinking.provider_data)
        case "tool_input":
            call = event.tool_input
            texts = (call.tool_configuration_name, call.tool_input_json, call.provider_data)
        case "tool_output":
            texts = (event.tool_output.tool_configuration_name, event.tool_output.tool_output_json)
        case "agent_output":
            texts = (event.agent_output.content, event.agent_output.provider_data)
        case "structured_output":
            texts = (event.structured_output.content_json,)
        case "artifact_upload":
            files = event.artifact_upload.artifacts
            texts = [f"{file.artifact_id}{file.filename}{file.mime_type}" for file in files]
        case "image_read":
            low = event.image_read.detail == event_pb2.IMAGE_DETAIL_LOW
            return _OF_SMALL_IMAGE if low else _OF_IMAGE
        case "compaction":
            texts = (event.compaction.summary_text,)
        case "session_interrupted":
            texts = (event.session_interrupted.reason,)
        case _:
            texts = ()
    return _OF_EVENT * max(1, len(texts)) + sum(map(estimate_text, texts))


def estimate_setting(
    instructions: Sequence[str], tools: Sequence[ToolDescription], schema: OutputSchema | None
) -> int:
    """Return how many tokens stand around the history in every call of a turn."""
    tokens = sum(_OF_EVENT + estimate_text(text) for text in instructions)
    for tool in tools:
        described = f"{tool.name}{tool.description}{dump_json(dict(tool.input_schema))}"
        tokens += _OF_TOOL + estimate_text(described)
    if schema is not None:
        tokens += _OF_TOOL + estimate_text(schema.name + dump_json(dict(schema.json_schema)))
    return tokens


_ANSWER_TOKENS = 8_192
_ANSWER_SHARE = 4
_ANSWER_PARAMETERS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def answer_room(context_tokens: int, parameters: Mapping[str, Json]) -> int:
    """Return how many tokens are left to the answer: as many as the parameters give it, else 8,192;
    at most half of the context, or a quarter when they say nothing.
    """
    for name in _ANSWER_PARAMETERS:
        value = parameters.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return min(value, context_tokens // 2)
    return min(_ANSWER_TOKENS, context_tokens // _ANSWER_SHARE)
