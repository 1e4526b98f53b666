"""What `hansard/extractive` makes of a history: the question, and what its tools have found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field

from hansard.v1 import artifact_pb2, event_pb2
from hansard_server.agents.api import Json
from hansard_server.agents.json_text import NotJson, parse_json
from hansard_server.agents.models.passages import Line, Passage, Source, split_sections
from hansard_server.agents.models.question import Question, read_question
from hansard_server.domain.values import dataclass

_FOLLOW_UP_TERMS = 3
_FOLLOW_UPS = ("and ", "also ", "what about ", "how about ", "but ", "then ")
_POINTING_BACK = frozenset(
    ["it", "its", "these", "those", "they", "them", "their", "he", "she", "him", "her", "his"]
)
_NAMED_FILES_MAX = 8
_TITLE_FIELDS = ("title", "name", "filename")
_CUT_TRIES = 64


@dataclass(slots=True)
class Findings:
    """What the tools have answered in this turn.

    Attributes:
        called: the artifacts that each kind of tool was called with; "" for a call without one.
        files_searched: how many files a search went through.
        hits: the lines that searches of files have found, each once.
        shown: the lines that were read, each once.
        passages: what searches of corpora have found, each once, cut at its headings.
        skipped: files that could not be searched, with the reason.
        done: the answers of tools that do something, by kind.
        problems: what tools said that failed.
    """

    called: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    files_searched: int = 0
    hits: dict[tuple[str, int], Line] = field(default_factory=dict)
    shown: dict[tuple[str, int], Line] = field(default_factory=dict)
    passages: dict[tuple[str, int], Sequence[Passage]] = field(default_factory=dict)
    skipped: dict[str, tuple[str, str]] = field(default_factory=dict)
    done: defaultdict[str, list[Mapping[str, Json]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Conversation:
    """The question and the state of the search for its answer.

    Attributes:
        files: the session's files as far as the history tells, the oldest first.
        named: the files that the message refers to, by reference or by name.
        converted: by document, the file with its text.
        unreadable: documents that could not be converted, with the reason.
        hidden: files that are no sources: what tools answered that was too long.
    """

    question: Question
    files: dict[str, artifact_pb2.ArtifactReference] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    converted: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    found: Findings = field(default_factory=Findings)

    def source_of(self, artifact_id: str, filename: str, original: str) -> Source:
        """Return the artifact as a source, with the document that it was converted from."""
        if not original:
            made_from = (key for key, made in self.converted.items() if made == artifact_id)
            original = next(made_from, "")
        known = self.files.get(original)
        name = known.filename if known else filename.removesuffix(".md" if original else "")
        return Source(artifact_id, name, original=original)


def read_conversation(history: Sequence[event_pb2.Event]) -> Conversation:
    """Return the newest question, what was found since it was asked, and the session's files."""
    inputs = [index for index, event in enumerate(history) if event.HasField("input_message")]
    if not inputs:
        return Conversation(question=read_question(""))
    message = history[inputs[-1]].input_message
    questions = [_text_of(history[index].input_message) for index in inputs]
    talk = Conversation(question=_question(questions))
    arguments = _read_arguments(history)
    for index, event in enumerate(history):
        if event.HasField("artifact_upload"):
            talk.files.update((file.artifact_id, file) for file in event.artifact_upload.artifacts)
        elif event.HasField("tool_output"):
            output = event.tool_output
            if output.HasField("offloaded_artifact"):
                talk.hidden.add(output.offloaded_artifact.artifact_id)
            result = _read_result(output)
            given = arguments.get(output.tool_call_id, {})
            if output.tool_name == "document_conversion":
                _take_conversion(talk, output, result, given)
            if index > inputs[-1]:
                _take_output(talk, output, result, given)
    talk.named = _named_files(message, questions[-1], talk)
    return talk


def _text_of(message: event_pb2.InputMessage) -> str:
    return "\n".join(part.text.content for part in message.messages if part.HasField("text"))


def _named_files(message: event_pb2.InputMessage, text: str, talk: Conversation) -> tuple[str, ...]:
    named = [part.artifact.artifact_id for part in message.messages if part.HasField("artifact")]
    lower = text.lower()
    named += [
        artifact_id
        for artifact_id, file in talk.files.items()
        if (file.filename.lower() in lower or artifact_id in lower)
        and artifact_id not in talk.converted.values()
    ]
    return tuple(dict.fromkeys(named))[:_NAMED_FILES_MAX]


def _question(texts: Sequence[str]) -> Question:
    """Return the newest question; a follow-up is also about what was asked before."""
    question = read_question(texts[-1])
    if len(texts) > 1 and _is_follow_up(question):
        return question.about_earlier(read_question(texts[-2]))
    return question


def _is_follow_up(question: Question) -> bool:
    text = question.text.strip().lower()
    terms = len(question.terms)
    return terms < _FOLLOW_UP_TERMS and (
        text.startswith(_FOLLOW_UPS) or terms == 0 or bool(_POINTING_BACK & set(text.split()))
    )


def _read_arguments(history: Sequence[event_pb2.Event]) -> dict[str, Mapping[str, Json]]:
    """Return what each tool was called with, by the id of the call."""
    found: dict[str, Mapping[str, Json]] = {}
    for event in history:
        if event.HasField("tool_input"):
            try:
                arguments = parse_json(event.tool_input.tool_input_json)
            except NotJson:
                continue
            if isinstance(arguments, dict):
                found[event.tool_input.tool_call_id] = arguments
    return found


def _read_result(output: event_pb2.ToolOutput) -> Mapping[str, Json]:
    """Return the answer; of one that was too long for its event, what there is of it."""
    try:
        result = parse_json(output.tool_output_json)
    except NotJson:
        return {}
    if not isinstance(result, dict):
        return {}
    if result.get("truncated") and isinstance(result.get("beginning"), str):
        return read_beginning(result["beginning"])
    return result


def read_beginning(text: str) -> Mapping[str, Json]:
    """Return what the beginning of an object's JSON holds: its list up to the last whole member."""
    end = len(text)
    for _ in range(_CUT_TRIES):
        end = text.rfind("},{", 0, end)
        if end < 0:
            break
        try:
            result = parse_json(text[: end + 1] + "]}")
        except NotJson:
            continue
        if isinstance(result, dict):
            return result
    return {}


def _take_conversion(
    talk: Conversation,
    output: event_pb2.ToolOutput,
    result: Mapping[str, Json],
    given: Mapping[str, Json],
) -> None:
    source = str(result.get("source_artifact_id") or given.get("artifact_id", ""))
    if output.error:
        talk.unreadable[source] = str(result.get("error", "It could not be converted."))
    elif result.get("artifact_id"):
        talk.unreadable.pop(source, None)
        talk.converted[source] = str(result["artifact_id"])


def _take_output(
    talk: Conversation,
    output: event_pb2.ToolOutput,
    result: Mapping[str, Json],
    given: Mapping[str, Json],
) -> None:
    found = talk.found
    found.called[output.tool_name].add(str(given.get("artifact_id", "")))
    if output.error:
        found.problems.append(str(result.get("error", "A tool failed.")))
        return
    found.done[output.tool_name].append(result)
    match output.tool_name:
        case "artifact_grep":
            _take_grep(talk, result)
        case "artifact_read":
            for line in _lines(talk, result, result.get("lines", ())):
                found.shown[line.source.key, line.number] = line
        case "corpora_search":
            for passage in _passages(result):
                key = (passage.source.key, passage.first)
                found.passages.setdefault(key, list(split_sections(passage)))
        case "document_conversion":
            beginning = str(result.get("beginning", "")).split("\n")
            shown = [{"line": n, "text": text} for n, text in enumerate(beginning, 1)]
            if "artifact_id" in result:
                for line in _lines(talk, result, shown):
                    found.hits.setdefault((line.source.key, line.number), line)


def _take_grep(talk: Conversation, result: Mapping[str, Json]) -> None:
    found = talk.found
    found.files_searched = max(found.files_searched, int(result.get("files_searched", 0)))
    for skipped in result.get("files_skipped", ()):
        found.skipped[skipped["artifact_id"]] = (skipped["filename"], skipped["reason"])
    for match in result.get("matches", ()):
        for line in _lines(talk, match, (match,)):
            found.hits[line.source.key, line.number] = line


def _lines(
    talk: Conversation, file: Mapping[str, Json], lines: Sequence[Mapping[str, Json]]
) -> Iterator[Line]:
    """Yield lines of a file; none of a document whose text is in another one."""
    artifact_id = str(file.get("artifact_id", ""))
    if artifact_id in talk.converted or artifact_id in talk.hidden:
        return
    original = str(file.get("converted_from") or file.get("source_artifact_id") or "")
    source = talk.source_of(artifact_id, str(file.get("filename", "")), original)
    for line in lines:
        yield Line(source, int(line["line"]), str(line["text"]))


def _passages(result: Mapping[str, Json]) -> Iterator[Passage]:
    for found in result.get("passages", ()):
        metadata = found.get("metadata") or {}
        titles = (metadata[name] for name in _TITLE_FIELDS if isinstance(metadata.get(name), str))
        document_id, corpus_key = str(found["document_id"]), str(found["corpus_key"])
        yield Passage(
            Source(f"{corpus_key}/{document_id}", next(titles, document_id), corpus_key=corpus_key),
            int(found["passage"]),
            tuple(str(found["text"]).split("\n")),
            tuple(map(str, found.get("headings", ()))),
        )
