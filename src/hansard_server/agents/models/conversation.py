"""What `hansard/extractive` makes of a history: the question, and what its tools have found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hansard.v1 import event_pb2
from hansard_server.agents.api import Json
from hansard_server.agents.json_text import NotJson, parse_json
from hansard_server.agents.models.ranking import content_terms

_FOLLOW_UP_TERMS = 3
_EARLIER_WEIGHT = 0.5
_FOLLOW_UPS = ("and ", "also ", "what about ", "how about ", "but ", "then ", "so ", "why", "or ")
_POINTING_BACK = frozenset(
    (
        "it",
        "its",
        "this",
        "that",
        "these",
        "those",
        "they",
        "them",
        "he",
        "she",
        "him",
        "her",
        "there",
    )
)
_NAMED_FILES_MAX = 8


@dataclass(frozen=True, slots=True)
class FoundLine:
    """A line that a tool has shown."""

    artifact_id: str
    filename: str
    number: int
    text: str


@dataclass(slots=True, kw_only=True)
class Conversation:
    """The question and the state of the search for its answer.

    Attributes:
        terms: stems of what the question is about, with how much each counts (1 or less).
        topic: the same in the words of whoever asked.
        named_files: the artifacts that the question refers to.
        searched: the search was made in this turn.
        files_searched: how many files the search went through.
        hits: the lines that it found, each once.
        has_read: places were read in this turn.
        shown: all lines that this turn's tools have read.
        problems: what tools said that failed.
    """

    terms: Mapping[str, float]
    topic: tuple[str, ...] = ()
    named_files: tuple[str, ...] = ()
    searched: bool = False
    files_searched: int = 0
    hits: dict[tuple[str, int], FoundLine] = field(default_factory=dict)
    has_read: bool = False
    shown: dict[tuple[str, int], FoundLine] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_conversation(history: Sequence[event_pb2.Event]) -> Conversation:
    """Return the newest question and what was found since it was asked."""
    inputs = [index for index, event in enumerate(history) if event.HasField("input_message")]
    if not inputs:
        return Conversation(terms={})
    questions = [_text_of(history[index].input_message) for index in inputs]
    question = history[inputs[-1]].input_message
    terms, topic = _terms(questions)
    talk = Conversation(terms=terms, topic=topic, named_files=_named_files(question))
    for event in history[inputs[-1] + 1 :]:
        if event.HasField("tool_output"):
            _take_output(talk, event.tool_output)
    return talk


def _text_of(message: event_pb2.InputMessage) -> str:
    return "\n".join(part.text.content for part in message.messages if part.HasField("text"))


def _named_files(message: event_pb2.InputMessage) -> tuple[str, ...]:
    ids = (part.artifact.artifact_id for part in message.messages if part.HasField("artifact"))
    return tuple(dict.fromkeys(ids))[:_NAMED_FILES_MAX]


def _terms(questions: Sequence[str]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the newest question's terms; a follow-up is also about what was asked before."""
    newest = questions[-1]
    asked = content_terms(newest)
    terms = dict.fromkeys(asked, 1.0)
    if len(questions) > 1 and _is_follow_up(newest, len(terms)):
        for term, word in content_terms(questions[-2]).items():
            terms.setdefault(term, _EARLIER_WEIGHT)
            asked.setdefault(term, word)
    return terms, tuple(asked.values())


def _is_follow_up(question: str, terms: int) -> bool:
    text = question.strip().lower()
    return terms < _FOLLOW_UP_TERMS and (
        text.startswith(_FOLLOW_UPS) or terms == 0 or bool(_POINTING_BACK & set(text.split()))
    )


def _take_output(talk: Conversation, output: event_pb2.ToolOutput) -> None:
    grep = output.tool_name == "artifact_grep"
    read = output.tool_name == "artifact_read"
    talk.searched = talk.searched or grep
    talk.has_read = talk.has_read or read
    try:
        result = parse_json(output.tool_output_json)
    except NotJson:
        return
    if not isinstance(result, dict):
        return
    if output.error:
        talk.problems.append(str(result.get("error", "A tool failed.")))
    elif grep:
        talk.files_searched = max(talk.files_searched, int(result.get("files_searched", 0)))
        _take_skipped(talk, result)
        for match in result.get("matches", ()):
            line = _line(match, match)
            talk.hits[line.artifact_id, line.number] = line
    elif read:
        for shown in result.get("lines", ()):
            line = _line(result, shown)
            talk.shown[line.artifact_id, line.number] = line


def _take_skipped(talk: Conversation, result: Mapping[str, Json]) -> None:
    for skipped in result.get("files_skipped", ()):
        if skipped["reason"] not in talk.problems:
            talk.problems.append(skipped["reason"])


def _line(file: Mapping[str, Json], line: Mapping[str, Json]) -> FoundLine:
    return FoundLine(file["artifact_id"], file["filename"], int(line["line"]), line["text"])
