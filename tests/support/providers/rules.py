"""What providers refuse: each check returns what is wrong with a request's body, empty for nothing.

The rules are those that the providers' documentation names and their servers answer 400 for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Body = Mapping[str, Any]
_SIGNING_KEY = b"the provider's own"
_ANTHROPIC_ID = re.compile(r"[a-zA-Z0-9_-]+")
_NAME_64 = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_GOOGLE_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}")
_NO_SIGNATURE = b"skip_thought_signature_validator"
OPENAI_ID_MAX = 40


def sign(content: str) -> str:
    """Return the signature that the provider gives to a thought."""
    digest = hmac.digest(_SIGNING_KEY, content.encode(), hashlib.sha256)
    return base64.b64encode(b"\x12" + digest).decode()


class Refused(Exception):  # noqa: N818 - reads as what happened
    """The provider would answer 400."""


def refuse(wrong: object, message: str) -> None:
    if wrong:
        raise Refused(message)


def _fault(check: Callable[[Body], None], body: Body) -> str:
    try:
        check(body)
    except Refused as error:
        return str(error)
    return ""


# Anthropic ----------------------------------------------------------------------------------------


def fault_of_anthropic(body: Body) -> str:
    """Return why the Messages API would refuse the body."""
    return _fault(_check_anthropic, body)


def _check_anthropic(body: Body) -> None:
    refuse(not body.get("model"), "model: Field required")
    refuse(body.get("max_tokens", 0) < 1, "max_tokens: Field required")
    messages = body.get("messages") or []
    refuse(not messages, "messages: at least one message is required")
    refuse(messages[0]["role"] != "user", "messages: first message must use the `user` role")
    refuse(
        messages[-1]["role"] != "user",
        "This model does not support assistant message prefill. The conversation must end with a "
        "user message.",
    )
    names = {tool["name"] for tool in body.get("tools") or []}
    _check_anthropic_tools(body)
    _check_system(body.get("system"))
    seen: set[str] = set()
    open_calls: list[str] = []
    before = ""
    for index, message in enumerate(messages):
        role, where = message["role"], f"messages.{index}"
        refuse(role not in {"user", "assistant"}, f"{where}.role: {role}")
        refuse(role == before, f"{where}: roles must alternate")
        before = role
        blocks = _blocks(message["content"], where)
        if role == "user":
            _check_results(blocks, open_calls, where)
            open_calls = []
        else:
            open_calls = _check_assistant(blocks, seen, where)
            refuse(open_calls and not names, "tools: required, since there are tool_use blocks")
    _check_thinking_loop(body, messages)


def _check_anthropic_tools(body: Body) -> None:
    names = [tool["name"] for tool in body.get("tools") or []]
    refuse(len(set(names)) != len(names), "tools: Tool names must be unique.")
    for tool in body.get("tools") or []:
        refuse(not _NAME_64.fullmatch(tool["name"]), f"tools.{tool['name']}: bad name")
        refuse(tool["input_schema"].get("type") != "object", "tools: input_schema.type: object")


def _check_system(system: Any) -> None:
    for block in system if isinstance(system, list) else []:
        refuse(not block.get("text", "").strip(), "system: text content blocks must be non-empty")


def _blocks(content: Any, where: str) -> Sequence[Body]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    refuse(not content, f"{where}: all messages must have non-empty content")
    for block in content:
        text = block.get("text", "") if block["type"] == "text" else "."
        refuse(not text.strip(), f"{where}: text content blocks must contain non-whitespace text")
    return list(content)


def _check_results(blocks: Sequence[Body], open_calls: Sequence[str], where: str) -> None:
    results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    first = [block["type"] for block in blocks[: len(results)]]
    refuse(set(first) - {"tool_result"}, f"{where}: tool_result blocks must come first")
    missing = [call for call in open_calls if call not in results]
    refuse(
        missing,
        f"{where}: `tool_use` ids were found without `tool_result` blocks immediately after: "
        f"{', '.join(missing)}",
    )
    strange = [result for result in results if result not in open_calls]
    refuse(strange, f"{where}: unexpected `tool_use_id` found in `tool_result` blocks: {strange}")
    refuse(len(set(results)) != len(results), f"{where}: each tool_use must have a single result")
    for block in blocks:
        refuse(
            block["type"] not in {"text", "image", "tool_result", "document"},
            f"{where}: {block['type']} can't be in a user message",
        )


def _check_assistant(blocks: Sequence[Body], seen: set[str], where: str) -> list[str]:
    calls = []
    for block in blocks:
        match block["type"]:
            case "thinking":
                refuse(
                    block.get("signature") != sign(block["thinking"]),
                    f"{where}: Invalid `signature` in `thinking` block",
                )
            case "redacted_thinking":
                refuse(
                    not str(block.get("data")).startswith("redacted:"),
                    f"{where}: Invalid `data` in `redacted_thinking` block",
                )
            case "tool_use":
                refuse(not _ANTHROPIC_ID.fullmatch(block["id"]), f"{where}: bad tool_use id")
                refuse(block["id"] in seen, f"{where}: `tool_use` ids must be unique")
                refuse(not isinstance(block["input"], dict), f"{where}: input: a dictionary")
                refuse(not _NAME_64.fullmatch(block["name"]), f"{where}: bad tool name")
                seen.add(block["id"])
                calls.append(block["id"])
            case kind:
                refuse(kind != "text", f"{where}: {kind} can't be in an assistant message")
    refuse(
        blocks[-1]["type"] in {"thinking", "redacted_thinking"},
        f"{where}: The final block in an assistant message cannot be `thinking`.",
    )
    return calls


def _check_thinking_loop(body: Body, messages: Sequence[Body]) -> None:
    """With thinking enabled, the answer whose calls are being answered begins with its thoughts."""
    thinking = body.get("thinking") or {}
    if thinking.get("type") != "enabled":
        return
    refuse(
        thinking.get("budget_tokens", 0) >= body["max_tokens"],
        "`max_tokens` must be greater than `thinking.budget_tokens`",
    )
    content = messages[-1]["content"]
    if len(messages) < 2 or isinstance(content, str) or content[0]["type"] != "tool_result":
        return
    first = messages[-2]["content"][0]["type"]
    refuse(
        first not in {"thinking", "redacted_thinking"},
        f"Expected `thinking` or `redacted_thinking`, but found `{first}`. When `thinking` is "
        "enabled, a final `assistant` message must start with a thinking block.",
    )


# OpenAI -------------------------------------------------------------------------------------------


def fault_of_openai(body: Body) -> str:
    """Return why Chat Completions, or a chat template behind it, would refuse the body."""
    return _fault(_check_openai, body)


def _check_openai(body: Body) -> None:
    refuse(not body.get("model"), "you must provide a model parameter")
    messages = body.get("messages") or []
    refuse(not messages, "messages: too short")
    for tool in body.get("tools") or []:
        refuse(not _NAME_64.fullmatch(tool["function"]["name"]), "tools: bad function name")
        refuse(tool["function"]["parameters"].get("type") != "object", "tools: bad parameters")
    names = [tool["function"]["name"] for tool in body.get("tools") or []]
    refuse(len(set(names)) != len(names), "tools: names must be unique")
    refuse(body.get("tools") == [], "tools: too short")
    rest = list(_after_system(messages))
    refuse(not rest or rest[0]["role"] != "user", "the conversation must begin with the user")
    refuse(rest[-1]["role"] not in {"user", "tool"}, "the last message must be the user's")
    pending: list[str] = []
    before = ""
    for index, message in enumerate(rest):
        role = message["role"]
        if role == "tool":
            call_id = message["tool_call_id"]
            refuse(
                call_id not in pending,
                f"messages.{index}: messages with role 'tool' must be a response to a preceding "
                "message with 'tool_calls'.",
            )
            pending.remove(call_id)
            refuse(not isinstance(message["content"], str | list), "tool: content is required")
        else:
            refuse(
                pending,
                "An assistant message with 'tool_calls' must be followed by tool messages "
                f"responding to each 'tool_call_id'. Missing: {pending}",
            )
            refuse(role == before, f"messages.{index}: roles must alternate")
            pending = _check_openai_message(message, f"messages.{index}")
        before = role
    refuse(pending, f"calls without tool messages: {pending}")


def _after_system(messages: Sequence[Body]) -> Iterator[Body]:
    started = False
    for message in messages:
        system = message["role"] in {"system", "developer"}
        refuse(system and started, "System message must be at the beginning.")
        refuse(system and not str(message["content"]).strip(), "system: content is empty")
        started = started or not system
        if not system:
            yield message


def _check_openai_message(message: Body, where: str) -> list[str]:
    role, content = message["role"], message.get("content")
    refuse(role not in {"user", "assistant"}, f"{where}.role: {role}")
    texts = [content] if isinstance(content, str) else [p.get("text", ".") for p in content or []]
    refuse(any(not text.strip() for text in texts), f"{where}: blank content")
    calls = message.get("tool_calls")
    refuse(calls == [], f"{where}.tool_calls: too short")
    if role == "user":
        refuse(not content, f"{where}: content is required")
        return []
    refuse(not content and not calls, f"{where}: content is required without tool_calls")
    ids = []
    for call in calls or ():
        refuse(not 0 < len(call["id"]) <= OPENAI_ID_MAX, f"{where}: tool call id: bad length")
        refuse(call["type"] != "function", f"{where}: tool call type")
        refuse(not _NAME_64.fullmatch(call["function"]["name"]), f"{where}: function name")
        arguments = json.loads(call["function"]["arguments"])
        refuse(not isinstance(arguments, dict), f"{where}: arguments are no object")
        ids.append(call["id"])
    refuse(len(set(ids)) != len(ids), f"{where}: tool call ids must be unique")
    return ids


# Google -------------------------------------------------------------------------------------------


def fault_of_google(body: Body) -> str:
    """Return why the Gemini API would refuse the body."""
    return _fault(_check_google, body)


def _check_google(body: Body) -> None:
    contents = body.get("contents") or []
    refuse(not contents, "contents is not specified")
    refuse(contents[0]["role"] != "user", "the first content must be the user's")
    refuse(contents[-1]["role"] != "user", "the last content must be the user's")
    open_calls: list[tuple[str, str]] = []
    for index, content in enumerate(contents):
        where, parts = f"contents[{index}]", content.get("parts") or []
        refuse(not parts, f"{where}.parts: must not be empty")
        for part in parts:
            refuse(not part.keys() - {"thoughtSignature", "thought"}, f"{where}: empty part")
        answers = [_id_and_name(p["functionResponse"]) for p in parts if "functionResponse" in p]
        if content["role"] == "user":
            refuse(
                sorted(answers) != sorted(open_calls),
                f"{where}: the number of function response parts must equal that of the function "
                "call parts of the function call turn, and come immediately after it",
            )
            open_calls = []
            continue
        refuse(open_calls, f"{where}: function calls without responses")
        calls = [part for part in parts if "functionCall" in part]
        open_calls = [_id_and_name(part["functionCall"]) for part in calls]
        for part in parts:
            refuse(not _google_signature_holds(part), f"{where}: Thought signature is not valid.")
        refuse(
            calls and not calls[0].get("thoughtSignature"),
            f"{where}: Function call is missing a thought_signature in functionCall parts.",
        )
        for _, name in open_calls:
            refuse(not _GOOGLE_NAME.fullmatch(name), f"{where}: Invalid function name: {name}")


def _id_and_name(part: Body) -> tuple[str, str]:
    return part.get("id") or "", part["name"]


def _google_signature_holds(part: Body) -> bool:
    signature = part.get("thoughtSignature")
    if signature is None:
        return True
    # Either alphabet of base64: the client writes the one for URLs.
    raw = base64.b64decode(signature.replace("-", "+").replace("_", "/"))
    return raw == _NO_SIGNATURE or raw == base64.b64decode(sign(_google_signed(part)))


def _google_signed(part: Body) -> str:
    """Return what the provider signs of a part."""
    if "functionCall" in part:
        call = part["functionCall"]
        return f"{call['name']} {json.dumps(call.get('args') or {}, sort_keys=True)}"
    return str(part.get("text", ""))


FAULTS: Mapping[str, Callable[[Body], str]] = {
    "anthropic": fault_of_anthropic,
    "openai": fault_of_openai,
    "google": fault_of_google,
}
