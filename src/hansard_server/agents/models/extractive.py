"""`hansard/extractive`: answers by quoting the session's files; it generates no prose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from hansard_server.agents.api import (
    Json,
    ModelRequest,
    Part,
    TextDelta,
    TextEnd,
    TextKind,
    ToolCall,
    ToolDescription,
)
from hansard_server.agents.json_text import dump_json
from hansard_server.agents.models.conversation import Conversation, read_conversation
from hansard_server.agents.models.extracts import extract
from hansard_server.agents.models.passages import Passage, best_passages, windows_to_read
from hansard_server.domain.errors import InvalidAgentConfiguration

_TERMS_SEARCHED = 8
_MATCHES_PER_TERM = 200
_DELTA_CHARACTERS = 48


class ExtractiveModel:
    """Keeps no state: what it has found out stands in the history as its own tool outputs.

    Three steps: search the files for each word of the question, read around the best places,
    quote the best passages word for word.
    """

    context_tokens: int | None = None

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        """Raise InvalidAgentConfiguration when there is any parameter: the model takes none."""
        for name in parameters:
            raise InvalidAgentConfiguration.of_field(
                f"model.parameters.{name}", "hansard/extractive takes no parameters"
            )

    async def respond(self, request: ModelRequest) -> AsyncIterator[Part]:
        """Yield the plan and the tool calls of a step, or the answer; or a summary."""
        if request.summary_of:
            # Five thousand sentences are compared with each other: not where other turns wait.
            summary = await asyncio.to_thread(extract, request.summary_of)
            for part in _answer(summary):
                yield part
            return
        talk = read_conversation(request.history)
        for part in _step(talk, request.tools):
            yield part


def _step(talk: Conversation, tools: Sequence[ToolDescription]) -> Iterator[Part]:
    grep = _tool(tools, "artifact_grep")
    if grep is None:
        return _answer(
            "I answer by quoting files, and this agent has no tool to search them: it needs "
            "artifact_grep."
        )
    if not talk.terms:
        return _answer(
            "I answer by quoting the files of this session. Ask me something that they may say."
        )
    if not talk.searched:
        return _search(talk, grep)
    if talk.files_searched == 0:
        return _answer(_nothing_searched(talk))
    read = _tool(tools, "artifact_read")
    windows = windows_to_read(talk)
    if read is not None and windows and not talk.has_read:
        return _read(windows, read)
    return _answer(_quote(talk))


def _tool(tools: Sequence[ToolDescription], kind: str) -> ToolDescription | None:
    return next((tool for tool in tools if tool.kind == kind), None)


def _search(talk: Conversation, grep: ToolDescription) -> Iterator[Part]:
    terms = list(talk.terms)[:_TERMS_SEARCHED]
    where = talk.named_files or ("",)
    named = (
        f"the {len(talk.named_files)} files named" if talk.named_files else "the session's files"
    )
    yield from _text(
        TextKind.THINKING,
        f"The question is about: {', '.join(talk.topic[:_TERMS_SEARCHED])}.\n"
        f"I search {named} for each of these, read around the places where most of them "
        "come together, and quote what fits best.",
    )
    for artifact_id in where:
        for term in terms:
            wanted = {
                "pattern": _pattern(term),
                "ignore_case": True,
                "max_matches": _MATCHES_PER_TERM,
                **({"artifact_id": artifact_id} if artifact_id else {}),
            }
            yield _call(grep, wanted)


def _pattern(term: str) -> str:
    # A stem is a beginning of all its word's forms. RE2's \b knows only ASCII words.
    return rf"\b{term}" if term.isascii() else term


def _read(windows: Sequence[Passage], read: ToolDescription) -> Iterator[Part]:
    places = ", ".join(f"{w.filename} from line {w.first_line}" for w in windows)
    yield from _text(TextKind.THINKING, f"The words come together in {places}. I read there.")
    for window in windows:
        wanted = {
            "artifact_id": window.artifact_id,
            "start_line": window.first_line,
            "line_count": window.last_line - window.first_line + 1,
        }
        yield _call(read, wanted)


def _call(tool: ToolDescription, wanted: Mapping[str, Json]) -> ToolCall:
    # What the agent's configuration fixes is not in the schema, and not the model's to give.
    known = tool.input_schema.get("properties", {})
    arguments = {name: value for name, value in wanted.items() if name in known}
    return ToolCall(name=tool.name, arguments_json=dump_json(arguments))


def _nothing_searched(talk: Conversation) -> str:
    if talk.problems:
        return "I could not search the files. " + " ".join(talk.problems[:3])
    return "There are no text files in this session that I could search. Upload one and ask again."


def _quote(talk: Conversation) -> str:
    passages = best_passages(talk)
    if not passages:
        return (
            f"Nothing in the {_files(talk.files_searched)} that I searched fits the question "
            f"(I looked for {', '.join(talk.topic[:_TERMS_SEARCHED])})."
        )
    return "\n\n".join(_citation(passage) for passage in passages)


def _files(count: int) -> str:
    return "one file" if count == 1 else f"{count} files"


def _citation(passage: Passage) -> str:
    lines = (
        f"line {passage.first_line}"
        if passage.first_line == passage.last_line
        else f"lines {passage.first_line}-{passage.last_line}"
    )
    quoted = "\n".join(f"> {line}".rstrip() for line in passage.lines)
    return f"{passage.filename} ({passage.artifact_id}), {lines}:\n{quoted}"


def _answer(text: str) -> Iterator[Part]:
    yield from _text(TextKind.OUTPUT, text)


def _text(kind: TextKind, text: str) -> Iterator[Part]:
    start = 0
    while start < len(text):
        end = text.find(" ", start + _DELTA_CHARACTERS)
        end = len(text) if end < 0 else end + 1
        yield TextDelta(kind, text[start:end])
        start = end
    yield TextEnd()
