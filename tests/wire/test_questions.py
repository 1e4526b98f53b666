"""`hansard/extractive` with all its tools: real documents, corpora, and what it does not know."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hansard.v1 import agent_pb2, agent_service_pb2
from tests.support.documents import make_docx, make_pdf
from tests.support.questions import (
    UNKNOWN,
    Question,
    content_words,
    read_documents,
    read_more,
    triples,
)
from tests.support.questions import is_right as is_right_answer
from tests.support.server import Running
from tests.support.talk import Talk, stored
from tests.wire.test_corpora import KEEP, QUERY, index, make_corpus, upload

READER = {"find": {"corpora_search": {"query_configuration": QUERY}}}
DESK: dict[str, dict[str, object]] = {
    tool: {tool: {}} for tool in ("document_conversion", "artifact_grep", "artifact_read")
}
WALRUS = "Walruses sleep in the water, held up by pouches of air in the throat."
GOLDEN = "A ferry to the island of Brock leaves the northern pier at nine every morning."
# Small words do not count when three in a row are looked for.
SMALL_WORDS = frozenset(
    [
        "a",
        "about",
        "after",
        "all",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "been",
        "by",
        "can",
        "did",
        "do",
        "does",
        "done",
        "for",
        "from",
        "get",
        "had",
        "has",
        "have",
        "he",
        "her",
        "him",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "long",
        "made",
        "make",
        "many",
        "may",
        "me",
        "more",
        "most",
        "much",
        "must",
        "my",
        "no",
        "not",
        "of",
        "off",
        "often",
        "old",
        "on",
        "one",
        "or",
        "our",
        "out",
        "over",
        "own",
        "per",
        "s",
        "shall",
        "she",
        "should",
        "so",
        "some",
        "somebody",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "to",
        "up",
        "used",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


async def open_talk(hansard: Running, key: str, **tools: dict[str, object]) -> Talk:
    """Make an agent with these tools, and a session with it."""
    await hansard.agents.CreateAgent(
        agent_service_pb2.CreateAgentRequest(
            key=key,
            name=key,
            model={"name": "hansard/extractive"},
            tool_configurations={
                name: agent_pb2.ToolConfiguration(**tool) for name, tool in tools.items()
            },
        )
    )
    return await Talk(hansard, key).open_session()


async def ask(talk: Talk, text: str) -> tuple[str, list[str]]:
    """Return the answer, and the tools that were used for it."""
    events = stored(await talk.send(text))
    outputs = [event.tool_output for event in events if event.HasField("tool_output")]
    assert not any(output.error for output in outputs), outputs
    return events[-1].agent_output.content, [output.tool_name for output in outputs]


async def test_documents_are_converted_quoted_indexed_and_found_by_others(
    hansard: Running,
) -> None:
    await make_corpus(hansard)
    desk = await open_talk(hansard, "desk", **DESK, **KEEP)
    pdf = await upload(desk, "walruses.pdf", make_pdf("About walruses", WALRUS))
    docx = await upload(desk, "ferries.docx", make_docx("Ferries", GOLDEN))
    answer, tools = await ask(desk, "Where do walruses sleep?")
    assert set(tools) == {"document_conversion", "artifact_grep", "artifact_read"}
    assert f"walruses.pdf ({pdf}, read as art_walruses_pdf" in answer
    assert "> Walruses sleep in the water" in answer
    answer, tools = await ask(desk, "When does the ferry to Brock leave?")
    assert "document_conversion" not in tools
    assert f"ferries.docx ({docx}, read as art_ferries_docx" in answer
    assert f"> {GOLDEN}" in answer
    answer, _ = await ask(desk, "What does a ferry ticket to Brock cost?")
    assert answer.startswith(UNKNOWN)
    answer, tools = await ask(desk, "Please put walruses.pdf into the collection.")
    assert tools == ["document_index"]
    assert answer == f"walruses.pdf is in the corpus docs as document {pdf}: one passage."
    reader = await open_talk(hansard, "reader", **READER)
    answer, tools = await ask(reader, "Where do walruses sleep?")
    assert set(tools) == {"corpora_search"}
    assert f"walruses.pdf, document {pdf} of docs, passage 1:" in answer
    assert "> Walruses sleep in the water" in answer
    answer, _ = await ask(reader, "When does the ferry to Brock leave?")
    assert answer.startswith(f"{UNKNOWN} Nothing in the corpora")


async def test_twenty_questions(hansard: Running) -> None:
    await make_corpus(hansard)
    documents = [each for each in read_documents() if each.kind in ("md", "txt")]
    for document in documents:
        await index(hansard, document.name, document.text)
    reader = await open_talk(hansard, "reader", **READER)
    asked = [question for each in documents for question in each.questions]
    answerable = [question for question in asked if question.quote]
    unanswerable = [question for question in asked if not question.quote]
    for part, least in ((every(answerable, 14), 11), (every(unanswerable, 6), 4)):
        right = 0
        for number, question in enumerate(part):
            talk = await reader.another(f"s{number}-{least}").open_session()
            answer, _ = await ask(talk, question.text)
            right += is_right_answer(question, answer, question.document)
        assert right >= least


def every(items: Sequence[Question], count: int) -> list[Question]:
    """Return so many of the items, from all over."""
    return list(itertools.islice(items, 0, None, len(items) // count))[:count]


def test_questions_do_not_repeat_what_the_documents_say() -> None:
    documents = read_documents()
    questions = [question for document in documents for question in document.questions]
    assert len(questions) >= 200
    assert sum(not question.quote for question in questions) >= len(questions) / 4
    assert sum(document.held_out for document in documents) == len(documents) / 2
    for document in (*documents, *read_more()):
        said = triples(content_words(document.text, SMALL_WORDS))
        for question in document.questions:
            both = said & triples(content_words(question.text, SMALL_WORDS))
            assert not both, (question.text, both)


def test_known_answers_stand_in_their_documents() -> None:
    for document in (*read_documents(), *read_more()):
        said = " ".join(content_words(document.text, frozenset()))
        for question in document.questions:
            assert " ".join(content_words(question.quote, frozenset())) in said, question
