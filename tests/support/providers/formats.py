"""The wire formats of providers: an answer as the frames of its stream, each with a label.

Labels say where in the answer a frame stands: `head`, `thinking`, `text`, `tool`, `tail`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from tests.support.providers.rules import sign

Frame = tuple[str, bytes]
Reply = Mapping[str, Any]
USAGE = {"input": 21, "output": 13, "reasoning": 5}


def pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def _usage(reply: Reply) -> dict[str, int]:
    return {**USAGE, **reply.get("usage", {})}


def _calls(reply: Reply) -> list[dict[str, Any]]:
    return [part for part in reply["parts"] if "tool" in part]


# OpenAI -------------------------------------------------------------------------------------------


def openai_frames(reply: Reply, model: str) -> Iterator[Frame]:
    """Yield the chunks of a chat completion; the fragments of its calls come in turns."""
    answer_id, size = f"chatcmpl-{secrets.token_hex(6)}", reply.get("piece", 4)

    def chunk(label: str, **values: Any) -> Frame:
        body = {"id": answer_id, "object": "chat.completion.chunk", "created": 1_790_000_000}
        return label, _data({**body, "model": model, **values})

    def delta(label: str, finish: str | None = None, **values: Any) -> Frame:
        choice = {"index": 0, "delta": values, "finish_reason": finish, "logprobs": None}
        return chunk(label, choices=[choice])

    yield delta("head", role="assistant", content="")
    for part in reply["parts"]:
        for piece in pieces(part.get("thinking", ""), size):
            yield delta("thinking", reasoning_content=piece)
        for piece in pieces(part.get("text", ""), size):
            yield delta("text", content=piece)
    calls = _calls(reply)
    for index, call in enumerate(calls):
        function = {"name": call["tool"], "arguments": ""}
        call_id = call.get("id", f"call_{secrets.token_hex(8)}")
        opening = {"index": index, "id": call_id, "type": "function", "function": function}
        yield delta("tool", tool_calls=[opening])
    fragments = [pieces(_arguments(call), size) for call in calls]
    for row in zip_longest(*fragments):
        for index, fragment in enumerate(row):
            if fragment is not None:
                function = {"arguments": fragment}
                yield delta("tool", tool_calls=[{"index": index, "function": function}])
    yield delta("tail", reply.get("finish", "tool_calls" if calls else "stop"))
    usage = _usage(reply)
    yield chunk(
        "tail",
        choices=[],
        usage={
            "prompt_tokens": usage["input"],
            "completion_tokens": usage["output"],
            "total_tokens": usage["input"] + usage["output"],
            "completion_tokens_details": {"reasoning_tokens": usage["reasoning"]},
        },
    )
    yield "tail", b"data: [DONE]\n\n"


def _arguments(call: Mapping[str, Any]) -> str:
    if "input_json" in call:
        return str(call["input_json"])
    return json.dumps(call.get("input", {}))


# Anthropic ----------------------------------------------------------------------------------------


def anthropic_frames(reply: Reply, model: str) -> Iterator[Frame]:
    """Yield the events of a message."""
    usage = _usage(reply)
    message: dict[str, Any] = {
        "id": f"msg_{secrets.token_hex(8)}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": usage["input"], "output_tokens": 1},
    }
    yield _event("head", "message_start", message=message)
    yield _event("head", "ping")
    for index, part in enumerate(reply["parts"]):
        yield from _anthropic_block(index, part, reply.get("piece", 4))
    stop = reply.get("finish", "tool_use" if _calls(reply) else "end_turn")
    yield _event(
        "tail",
        "message_delta",
        delta={"stop_reason": stop, "stop_sequence": None},
        usage={"output_tokens": usage["output"]},
    )
    yield _event("tail", "message_stop")


def _anthropic_block(index: int, part: Mapping[str, Any], size: int) -> Iterator[Frame]:
    deltas: list[dict[str, Any]]
    if "thinking" in part:
        label, text = "thinking", part["thinking"]
        block = {"type": "thinking", "thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": p} for p in pieces(text, size)]
        deltas.append({"type": "signature_delta", "signature": sign(text)})
    elif "redacted" in part:
        label, deltas = "thinking", []
        block = {"type": "redacted_thinking", "data": f"redacted:{part['redacted']}"}
    elif "text" in part:
        label = "text"
        block = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": p} for p in pieces(part["text"], size)]
    else:
        label = "tool"
        call_id = part.get("id", f"toolu_{secrets.token_hex(8)}")
        block = {"type": "tool_use", "id": call_id, "name": part["tool"], "input": {}}
        fragments = ["", *pieces(_arguments(part), size)]
        deltas = [{"type": "input_json_delta", "partial_json": p} for p in fragments]
    yield _event(label, "content_block_start", index=index, content_block=block)
    for delta in deltas:
        yield _event(label, "content_block_delta", index=index, delta=delta)
    yield _event(label, "content_block_stop", index=index)


def _event(label: str, kind: str, **values: Any) -> Frame:
    return label, f"event: {kind}\n".encode() + _data({"type": kind, **values})


# Google -------------------------------------------------------------------------------------------


def google_frames(reply: Reply, model: str) -> Iterator[Frame]:
    """Yield the responses of a stream of generated content."""
    answer_id, size = secrets.token_hex(8), reply.get("piece", 4)
    usage = _usage(reply)

    def chunk(label: str, *parts: Mapping[str, Any], finish: str | None = None) -> Frame:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
        if finish is not None:
            candidate["finishReason"] = finish
        body: dict[str, Any] = {"candidates": [candidate], "modelVersion": model}
        body["usageMetadata"] = {
            "promptTokenCount": usage["input"],
            "candidatesTokenCount": usage["output"] - usage["reasoning"],
            "thoughtsTokenCount": usage["reasoning"],
            "totalTokenCount": usage["input"] + usage["output"],
        }
        return label, _data({**body, "responseId": answer_id})

    signed = False
    for part in reply["parts"]:
        for piece in pieces(part.get("thinking", ""), size):
            yield chunk("thinking", {"text": piece, "thought": True})
        for piece in pieces(part.get("text", ""), size):
            yield chunk("text", {"text": piece})
        if "tool" in part:
            arguments = part.get("input", {})
            call: dict[str, Any] = {"functionCall": {"name": part["tool"], "args": arguments}}
            if not signed:
                spoken = f"{part['tool']} {json.dumps(arguments, sort_keys=True)}"
                call["thoughtSignature"] = sign(spoken)
            signed = True
            yield chunk("tool", call)
    texts = "".join(part.get("text", "") for part in reply["parts"])
    end: dict[str, Any] = {"text": ""}
    if not signed and texts:
        end["thoughtSignature"] = sign(texts)
    yield chunk("tail", end, finish=reply.get("finish", "STOP"))


def _data(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


FRAMES: Mapping[str, Callable[[Reply, str], Iterator[Frame]]] = {
    "openai": openai_frames,
    "anthropic": anthropic_frames,
    "google": google_frames,
}


def error_body(provider: str, status: int, message: str) -> dict[str, Any]:
    """Return the body of an error, as the provider makes it."""
    kinds: Mapping[int, Sequence[str]] = {
        400: ("invalid_request_error", "INVALID_ARGUMENT"),
        401: ("authentication_error", "UNAUTHENTICATED"),
        429: ("rate_limit_error", "RESOURCE_EXHAUSTED"),
        503: ("api_error", "UNAVAILABLE"),
        529: ("overloaded_error", "UNAVAILABLE"),
    }
    kind, google = kinds.get(status, ("api_error", "INTERNAL"))
    if provider == "anthropic":
        return {"type": "error", "error": {"type": kind, "message": message}}
    if provider == "google":
        return {"error": {"code": status, "message": message, "status": google}}
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
