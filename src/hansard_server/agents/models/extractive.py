"""`hansard/extractive`: answers by quoting files and corpora; it generates no prose."""

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
from hansard_server.agents.models import indexing
from hansard_server.agents.models.answers import answer
from hansard_server.agents.models.conversation import Conversation, read_conversation
from hansard_server.agents.models.extracts import extract
from hansard_server.agents.models.files import (
    documents_to_convert,
    files_to_read,
    files_to_search,
    patterns,
    windows_to_read,
)
from hansard_server.agents.models.question import stem_list
from hansard_server.domain.errors import InvalidAgentConfiguration
from hansard_server.domain.values import dataclass

_MATCHES_PER_TERM = 100
_HEADINGS_PER_FILE = 100
_PASSAGES_FOUND = 20
_QUERY_MAX_CHARACTERS = 4_000
_DELTA_CHARACTERS = 48
_TOPIC_SHOWN = 8
_HEADING_PATTERN = r"^#+ "
_SEARCHES = ("corpora_search", "artifact_grep", "artifact_read", "document_conversion")


class ExtractiveModel:
    """Keeps no state: what it has found out stands in the history as its own tool outputs.

    It searches the corpora, converts documents that are no text, searches the files for each word
    of the question, reads around the best places, and quotes the passages that fit best, word for
    word; if none does, it says that it does not know. Asked to, it puts files into a corpus. It
    does what the agent's tools allow.
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
            for part in _say(summary):
                yield part
            return
        # Passages are judged here: not where other turns wait.
        for part in await asyncio.to_thread(_parts, request):
            yield part


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The agent's tools, by kind."""

    tools: tuple[ToolDescription, ...]

    def all(self, kind: str) -> Sequence[ToolDescription]:
        """Return the tools of a kind."""
        return [tool for tool in self.tools if tool.kind == kind]

    def one(self, kind: str) -> ToolDescription | None:
        """Return the first tool of a kind, if there is one."""
        return next(iter(self.all(kind)), None)


def _parts(request: ModelRequest) -> list[Part]:
    return list(_step(read_conversation(request.history), Toolbox(tuple(request.tools))))


def _step(talk: Conversation, box: Toolbox) -> Iterator[Part]:
    if indexing.is_request(talk.question.text):
        return _index(talk, box)
    if not any(box.one(kind) for kind in _SEARCHES):
        return _say(
            "I answer by quoting files and corpora, and this agent has no tool to search them: it "
            "needs corpora_search, or artifact_grep and artifact_read."
        )
    if not talk.question.terms:
        return _say(
            "I answer by quoting the files of this session and the corpora of its agent. Ask me "
            "something that they may say."
        )
    for step in (_gather, _search_files, _convert_more, _search_converted, _read):
        thought, calls = step(talk, box)
        if calls:
            return _do(thought, calls)
    return _say(answer(talk))


_Step = tuple[str, Sequence[ToolCall]]
_NOTHING: _Step = ("", ())


def _gather(talk: Conversation, box: Toolbox) -> _Step:
    """Search the corpora, and make text of the documents that the history knows of."""
    if talk.found.called:
        return _NOTHING
    topic = ", ".join(talk.question.topic[:_TOPIC_SHOWN])
    plans = [f"The question is about: {topic}."]
    calls: list[ToolCall] = []
    searches = box.all("corpora_search")
    if searches:
        plans.append("I search the corpora for it, also by other words for the same.")
        calls += (_call(tool, wanted) for tool in searches for wanted in _queries(talk))
    converting = _conversions(talk, box)
    if converting:
        plans.append("Documents that are no text I convert first.")
        calls += converting
    if box.one("artifact_grep"):
        plans.append(
            f"I search {_files(talk)} for each word, and read around the places where most of "
            "them come together."
        )
        if not calls:
            calls += _greps(talk, box, files_to_search(talk))
    plans.append("I quote what fits best.")
    return "\n".join(plans), calls or _reads(talk, box)


def _search_files(talk: Conversation, box: Toolbox) -> _Step:
    if talk.found.called.get("artifact_grep"):
        return _NOTHING
    calls = _greps(talk, box, files_to_search(talk)) or (
        _reads(talk, box) if not talk.found.called.get("artifact_read") else ()
    )
    return f"I search {_files(talk)}.", calls


def _convert_more(talk: Conversation, box: Toolbox) -> _Step:
    """Make text of documents that only the search of all files has met."""
    return "These files are no text. I convert them.", _conversions(talk, box)


def _search_converted(talk: Conversation, box: Toolbox) -> _Step:
    searched = talk.found.called.get("artifact_grep", set())
    if not searched:
        return _NOTHING
    made = [
        talk.converted[source]
        for source in talk.found.called.get("document_conversion", ())
        if source in talk.found.skipped and source in talk.converted
    ]
    calls = _greps(talk, box, [artifact_id for artifact_id in made if artifact_id not in searched])
    return "I search what was converted.", calls


def _read(talk: Conversation, box: Toolbox) -> _Step:
    tool = box.one("artifact_read")
    if tool is None or talk.found.called.get("artifact_read"):
        return _NOTHING
    windows = windows_to_read(talk)
    places = ", ".join(f"{window.source.name} from line {window.first}" for window in windows)
    calls = [
        _call(
            tool,
            {
                "artifact_id": window.source.key,
                "start_line": window.first,
                "line_count": window.last - window.first + 1,
            },
        )
        for window in windows
    ]
    grep = box.one("artifact_grep")
    if grep is not None:
        calls += (
            _call(
                grep,
                {
                    "pattern": _HEADING_PATTERN,
                    "artifact_id": artifact_id,
                    "max_matches": _HEADINGS_PER_FILE,
                },
            )
            for artifact_id in dict.fromkeys(window.source.key for window in windows)
        )
    return f"The words come together in {places}. I read there.", calls


def _queries(talk: Conversation) -> Iterator[Mapping[str, Json]]:
    asked = " ".join(talk.question.topic)
    for query in dict.fromkeys((asked, " ".join(stem_list(talk.question.terms)))):
        yield {"query": query[:_QUERY_MAX_CHARACTERS], "limit": _PASSAGES_FOUND}


def _conversions(talk: Conversation, box: Toolbox) -> Sequence[ToolCall]:
    tool = box.one("document_conversion")
    if tool is None or (_is_fixed(tool) and talk.found.called.get(tool.kind)):
        return ()
    calls = [_call(tool, {"artifact_id": each}) for each in documents_to_convert(talk)]
    return calls[:1] if _is_fixed(tool) else calls


def _greps(talk: Conversation, box: Toolbox, where: Sequence[str]) -> Sequence[ToolCall]:
    tool = box.one("artifact_grep")
    if tool is None:
        return ()
    return [
        _call(
            tool,
            {
                "pattern": pattern,
                "ignore_case": True,
                "max_matches": _MATCHES_PER_TERM,
                **({"artifact_id": artifact_id} if artifact_id else {}),
            },
        )
        for artifact_id in where
        for pattern in patterns(talk.question)
    ]


def _reads(talk: Conversation, box: Toolbox) -> Sequence[ToolCall]:
    """Without a search, read files from their beginning."""
    tool = box.one("artifact_read")
    if tool is None or box.one("artifact_grep"):
        return ()
    return [_call(tool, {"artifact_id": each}) for each in files_to_read(talk)]


def _files(talk: Conversation) -> str:
    if talk.named:
        return "the file named" if len(talk.named) == 1 else f"the {len(talk.named)} files named"
    return "the session's files"


def _is_fixed(tool: ToolDescription) -> bool:
    """Tell whether the agent's configuration says which artifact the tool is for."""
    return "artifact_id" not in tool.input_schema.get("properties", {})


def _index(talk: Conversation, box: Toolbox) -> Iterator[Part]:
    tool = box.one("document_index")
    if tool is None:
        return _say("This agent has no tool to put files into a corpus: it needs document_index.")
    if talk.found.called.get("document_index"):
        return _say(indexing.report(talk))
    wanted = indexing.wanted_files(talk)
    if not wanted.artifact_ids and not _is_fixed(tool):
        return _say("Which file do you mean? Upload it first, or say its name.")
    names = [
        talk.files[each].filename if each in talk.files else each for each in wanted.artifact_ids
    ]
    identified = {"document_id": wanted.document_id} if wanted.document_id else {}
    calls = [
        _call(tool, {"artifact_id": each, **identified})
        for each in (wanted.artifact_ids[:1] or [""] if _is_fixed(tool) else wanted.artifact_ids)
    ]
    return _do(f"I put {', '.join(names) or 'the file'} into the corpus.", calls)


def _call(tool: ToolDescription, wanted: Mapping[str, Json]) -> ToolCall:
    # What the agent's configuration fixes is not in the schema, and not the model's to give.
    known = tool.input_schema.get("properties", {})
    arguments = {name: value for name, value in wanted.items() if name in known}
    return ToolCall(name=tool.name, arguments_json=dump_json(arguments))


def _do(thought: str, calls: Sequence[ToolCall]) -> Iterator[Part]:
    yield from _text(TextKind.THINKING, thought)
    yield from calls


def _say(text: str) -> Iterator[Part]:
    yield from _text(TextKind.OUTPUT, text)


def _text(kind: TextKind, text: str) -> Iterator[Part]:
    start = 0
    while start < len(text):
        end = text.find(" ", start + _DELTA_CHARACTERS)
        end = len(text) if end < 0 else end + 1
        yield TextDelta(kind, text[start:end])
        start = end
    yield TextEnd()
