"""The language of scripts: what `hansard/scripted` takes as its parameters.

    {"script": [
      {"thinking": {"deltas": ["a", "b"], "pause_ms": 5}},
      {"tool_call": {"name": "lookup", "input": {"q": 1}, "output": {"found": true},
                     "error": false, "pause_ms": 50}},
      {"pause_ms": 100},
      {"agent_output": {"content": "text", "delta_count": 20, "pause_ms": 2}},
      {"structured_output": {"content": {"found": 3}, "pause_ms": 2}},
      {"usage": {"input_tokens": 3, "output_tokens": 5}},
      {"fail": "message"}
    ],
     "summary": [{"agent_output": {"content": "They greeted each other."}}]}

`thinking`, `agent_output`: one event. Either `deltas`, as they are shown, or `content`, shown in
`delta_count` pieces (default 1; at most one a character). `pause_ms` is waited before each delta.
`tool_call`: the arguments as `input` (any JSON, default {}) or, as exact text, `input_json`. With
`output` (or `output_json`) that is the result, after `pause_ms`; `error` makes it one. Without, the
agent's own tool of that name runs.
`structured_output` is an answer of the agent's schema: `content` (any JSON) or, as exact text,
`content_json`. The rest of the script is the next model call's, which repairs it.
`usage` counts for the model call that it stands in. `fail` ends the turn.

Tool calls that stand together (with `usage` among them) are one step and run side by side; the rest
of the script is the next model call's. A pause, even of 0 ms, between two calls makes two steps.

`summary` is what the model says when it is to summarise the conversation, without tool calls;
left out, it says how many events it was given.

{"echo": "instructions" | "history" | "tools"} writes what the model was given as thinking, then a
short answer. Without parameters the answer is one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from hansard_server.agents.api import Json, ScriptedResult, TextKind, ToolCall
from hansard_server.agents.json_text import NotJson, dump_json, parse_json
from hansard_server.domain.errors import FieldViolation, InvalidAgentConfiguration
from hansard_server.domain.records import Usage
from hansard_server.domain.values import dataclass

PAUSE_MAX_MS = 60_000
DELTAS_MAX = 10_000
ITEMS_MAX = 10_000
TOKENS_MAX = 2**31
ECHOES = ("instructions", "history", "tools")
_MS_PER_S = 1000


@dataclass(frozen=True, slots=True)
class Text:
    """A text, delta by delta; the pause comes before each."""

    kind: TextKind
    deltas: tuple[str, ...]
    pause_s: float
    ends_step: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing happens for a while."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class Fail:
    """The model can't go on."""

    message: str


Item = Text | ToolCall | Pause | Usage | Fail


@dataclass(frozen=True, slots=True)
class Script:
    """What the parameters say: items, or an echo, or neither; and what a summary says."""

    items: tuple[Item, ...] = ()
    echo: str | None = None
    summary: tuple[Item, ...] = ()


def parse_script(parameters: Mapping[str, Json]) -> Script:
    """Return the script. Raises InvalidAgentConfiguration with the path of what is wrong."""
    members = _Members(parameters, "model.parameters", ("script", "echo", "summary"))
    echo = members.get("echo")
    if echo is not None and echo not in ECHOES:
        raise _wrong("model.parameters.echo", f"must be one of {', '.join(ECHOES)}")
    if echo is not None and "script" in parameters:
        raise _wrong("model.parameters.echo", "can't stand beside script")
    summary = _items(parameters, "summary")
    if any(isinstance(item, ToolCall) for item in summary):
        raise _wrong("model.parameters.summary", "must hold no tool_call")
    return Script(_items(parameters, "script"), echo, summary)


def _items(parameters: Mapping[str, Json], name: str) -> tuple[Item, ...]:
    if name not in parameters:
        return ()
    path = f"model.parameters.{name}"
    items = parameters[name]
    if not isinstance(items, list) or not 1 <= len(items) <= ITEMS_MAX:
        raise _wrong(path, f"must be a list of 1 to {ITEMS_MAX:,} items")
    return tuple(_item(item, f"{path}[{index}]") for index, item in enumerate(items))


def split_segments(items: Sequence[Item]) -> list[tuple[Item, ...]]:
    """Return the items of each model call: one ends after a run of tool calls, or an answer of the
    agent's schema.
    """
    segments: list[tuple[Item, ...]] = []
    segment: list[Item] = []
    called = False
    for item in items:
        if called and not isinstance(item, ToolCall | Usage):
            segments.append(tuple(segment))
            segment, called = [], False
        segment.append(item)
        called = called or isinstance(item, ToolCall) or (isinstance(item, Text) and item.ends_step)
    if segment:
        segments.append(tuple(segment))
    return segments


def split_text(content: str, pieces: int) -> tuple[str, ...]:
    """Return the content in `pieces` nearly equal parts, at most one for each character."""
    count = max(1, min(pieces, len(content)))
    bounds = [len(content) * index // count for index in range(count + 1)]
    return tuple(content[a:b] for a, b in pairwise(bounds))


def _wrong(path: str, description: str) -> InvalidAgentConfiguration:
    return InvalidAgentConfiguration(
        f"{path}: {description}", violations=(FieldViolation(path, description),)
    )


class _Members:
    """The members of one object of the script."""

    def __init__(self, value: Json, path: str, known: Sequence[str]) -> None:
        if not isinstance(value, Mapping):
            raise _wrong(path, "must be an object")
        for name in value:
            if name not in known:
                raise _wrong(f"{path}.{name}", f"unknown; there are {', '.join(known)}")
        self._value = value
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def get(self, name: str) -> Json:
        return self._value.get(name)

    def number(self, name: str, least: float, most: float, default: float = 0) -> float:
        value = self._value.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(f"{self._path}.{name}", "must be a number")
        if not least <= value <= most:
            raise _wrong(f"{self._path}.{name}", f"must be {least:,} to {most:,}")
        return value

    def whole(self, name: str, least: int, most: int, default: int = 0) -> int:
        value = self.number(name, least, most, default)
        if value != int(value):
            raise _wrong(f"{self._path}.{name}", "must be a whole number")
        return int(value)

    def pause_s(self) -> float:
        return self.number("pause_ms", 0, PAUSE_MAX_MS) / _MS_PER_S

    def boolean(self, name: str) -> bool:
        value = self._value.get(name, False)
        if not isinstance(value, bool):
            raise _wrong(f"{self._path}.{name}", "must be true or false")
        return value

    def text(self, name: str) -> str:
        value = self._value.get(name)
        if not isinstance(value, str) or not value:
            raise _wrong(f"{self._path}.{name}", "must be a text, not empty")
        return value

    def one_of(self, first: str, second: str) -> None:
        if first in self._value and second in self._value:
            raise _wrong(f"{self._path}.{second}", f"can't stand beside {first}")


def _item(value: Json, path: str) -> Item:  # noqa: PLR0911 - one for each kind
    kinds = (
        *("thinking", "agent_output", "structured_output", "tool_call"),
        *("pause_ms", "usage", "fail"),
    )
    members = _Members(value, path, kinds)
    if len(value) != 1:
        raise _wrong(path, f"must have exactly one of {', '.join(kinds)}")
    (kind,) = value
    where = f"{path}.{kind}"
    match kind:
        case "thinking":
            return _text(TextKind.THINKING, value[kind], where)
        case "agent_output":
            return _text(TextKind.OUTPUT, value[kind], where)
        case "structured_output":
            return _structured(value[kind], where)
        case "tool_call":
            return _tool_call(value[kind], where)
        case "pause_ms":
            return Pause(members.pause_s())
        case "usage":
            return _usage(value[kind], where)
        case _:
            return Fail(members.text("fail"))


def _text(kind: TextKind, value: Json, path: str) -> Text:
    members = _Members(value, path, ("content", "deltas", "delta_count", "pause_ms"))
    members.one_of("deltas", "content")
    pause_s = members.pause_s()
    if "deltas" not in members:
        count = members.whole("delta_count", 1, DELTAS_MAX, 1)
        return Text(kind, split_text(members.text("content"), count), pause_s)
    members.one_of("deltas", "delta_count")
    deltas = members.get("deltas")
    if not isinstance(deltas, list) or not 1 <= len(deltas) <= DELTAS_MAX:
        raise _wrong(f"{path}.deltas", f"must be a list of 1 to {DELTAS_MAX:,} texts")
    for index, delta in enumerate(deltas):
        if not isinstance(delta, str) or not delta:
            raise _wrong(f"{path}.deltas[{index}]", "must be a text, not empty")
    return Text(kind, tuple(deltas), pause_s)


def _structured(value: Json, path: str) -> Text:
    members = _Members(value, path, ("content", "content_json", "pause_ms"))
    members.one_of("content", "content_json")
    content = _json(members, "content", path, default=None)
    if content is None:
        raise _wrong(f"{path}.content", "must be there, or content_json")
    return Text(TextKind.OUTPUT, (content,), members.pause_s(), ends_step=True)


def _tool_call(value: Json, path: str) -> ToolCall:
    known = ("name", "input", "input_json", "output", "output_json", "error", "pause_ms")
    members = _Members(value, path, known)
    members.one_of("input", "input_json")
    members.one_of("output", "output_json")
    arguments = _json(members, "input", path, default="{}")
    output = _json(members, "output", path, default=None)
    if output is None:
        for name in ("error", "pause_ms"):
            if name in members:
                raise _wrong(f"{path}.{name}", "needs an output: without one the real tool runs")
    return ToolCall(
        name=members.text("name"),
        arguments_json=arguments or "{}",
        scripted_result=None
        if output is None
        else ScriptedResult(output, members.boolean("error"), members.pause_s()),
    )


def _json(members: _Members, name: str, path: str, default: str | None) -> str | None:
    if f"{name}_json" in members:
        return _json_text(members.text(f"{name}_json"), name, path)
    if name not in members:
        return default
    try:
        return dump_json(members.get(name))
    except NotJson as error:
        raise _wrong(f"{path}.{name}", "must be JSON") from error


def _json_text(text: str, name: str, path: str) -> str:
    if name == "output":  # a model may call with what is no JSON; a tool may not answer so
        try:
            parse_json(text)
        except NotJson as error:
            raise _wrong(f"{path}.output_json", "must be JSON") from error
    return text


def _usage(value: Json, path: str) -> Usage:
    names = ("input_tokens", "output_tokens", "reasoning_tokens")
    members = _Members(value, path, names)
    return Usage(*(members.whole(name, 0, TOKENS_MAX) for name in names))
