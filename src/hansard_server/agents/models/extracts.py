"""Extracts: a summary of the most telling sentences of a conversation, word for word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from hansard.v1 import event_pb2
from hansard_server.agents.models.question import content_terms
from hansard_server.domain.values import dataclass

_SENTENCE_END = re.compile(
    r"(?<=[.!?…。\N{FULLWIDTH EXCLAMATION MARK}\N{FULLWIDTH QUESTION MARK}])\s+|\n+"
)
_SENTENCES_MAX = 24
_CHARACTERS_MAX = 3_000
_SENTENCE_MAX_CHARACTERS = 400
_SENTENCES_READ = 5_000
_USED_AGAIN = 0.3
"""What a word counts that stands in a chosen sentence already."""
_EARLIER = "Earlier"


@dataclass(frozen=True, slots=True)
class _Sentence:
    place: int
    speaker: str
    text: str
    terms: frozenset[str]


def extract(events: Sequence[event_pb2.Event]) -> str:
    """Return sentences of the events, in order, each after who said it.

    Those are chosen whose words the conversation comes back to, and which say something that the
    chosen ones do not; of an earlier summary the sentences compete with the others.
    """
    sentences = list(_sentences(events))[-_SENTENCES_READ:]
    counts = Counter(term for sentence in sentences for term in sentence.terms)
    chosen: list[_Sentence] = []
    weights = {term: float(count) for term, count in counts.items()}
    rest = [sentence for sentence in sentences if sentence.terms]
    characters = 0
    while rest and len(chosen) < _SENTENCES_MAX:
        best = max(rest, key=lambda sentence: (_worth(sentence, weights), -sentence.place))
        rest.remove(best)
        if characters + len(best.text) > _CHARACTERS_MAX:
            continue
        characters += len(best.text)
        chosen.append(best)
        for term in best.terms:
            weights[term] *= _USED_AGAIN
    # A conversation without a word that counts is told by its last sentences.
    chosen = chosen or sentences[-3:]
    return "\n".join(_lines(sorted(chosen, key=lambda sentence: sentence.place)))


def _worth(sentence: _Sentence, weights: dict[str, float]) -> float:
    # Long sentences hold more words, not more worth.
    return sum(weights[term] for term in sentence.terms) / (len(sentence.terms) + 3)


def _lines(sentences: Sequence[_Sentence]) -> Iterator[str]:
    speaker = ""
    for sentence in sentences:
        if sentence.speaker == _EARLIER:
            yield sentence.text
        elif sentence.speaker == speaker:
            yield f"  {sentence.text}"
        else:
            yield f"{sentence.speaker}: {sentence.text}"
        speaker = sentence.speaker


def _sentences(events: Sequence[event_pb2.Event]) -> Iterator[_Sentence]:
    place = 0
    for speaker, text in _said(events):
        for piece in _SENTENCE_END.split(text):
            short = " ".join(piece.split())[:_SENTENCE_MAX_CHARACTERS]
            if short:
                yield _Sentence(place, speaker, short, frozenset(content_terms(short)))
                place += 1


def _said(events: Sequence[event_pb2.Event]) -> Iterator[tuple[str, str]]:
    for event in events:
        match event.WhichOneof("payload"):
            case "compaction":
                yield _EARLIER, event.compaction.summary_text
            case "input_message":
                for part in event.input_message.messages:
                    if part.HasField("text"):
                        yield "User", part.text.content
                    else:
                        yield "User", f"(shows the file {part.artifact.filename})"
            case "agent_output":
                yield "Agent", event.agent_output.content
            case "structured_output":
                yield "Agent", event.structured_output.content_json
            case "artifact_upload":
                names = ", ".join(file.filename for file in event.artifact_upload.artifacts)
                yield "Files", names
            case _:
                pass
