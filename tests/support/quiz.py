"""Puts documents into a server and asks it the questions about them, as any client would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hansard_client import File, Hansard
from hansard_client.client import Session
from tests.support.questions import Document, Question, is_right, quotes

_FILE_TOOLS = ("document_conversion", "artifact_grep", "artifact_read")


@dataclass(slots=True)
class Marks:
    """How many of the questions were answered rightly.

    Attributes:
        asked: questions, by whether there is an answer.
        right: of these.
        first: answerable ones whose passage was quoted before any other.
        wrong: what was answered to the others.
    """

    asked: Counter[bool] = field(default_factory=Counter)
    right: Counter[bool] = field(default_factory=Counter)
    first: int = 0
    wrong: list[tuple[Question, str]] = field(default_factory=list)

    def add(self, question: Question, answer: str, document_id: str) -> None:
        """Count an answer."""
        answerable = bool(question.quote)
        self.asked[answerable] += 1
        if not is_right(question, answer, document_id):
            self.wrong.append((question, answer))
            return
        self.right[answerable] += 1
        if answerable:
            where, quoted = next(quotes(answer))
            lines = "\n".join(f">{line}" for line in quoted.split("\n"))
            self.first += is_right(question, f"{where}\n{lines}", document_id)

    def share(self, *, answerable: bool) -> float:
        """Return the part that was right."""
        return self.right[answerable] / self.asked[answerable]


class Quiz:
    """A server whose agents know documents."""

    def __init__(self, hansard: Hansard, corpus: str = "library") -> None:
        """Make the agents: one that fills a corpus, one that searches it, one that reads files."""
        self._hansard = hansard
        self._corpus = corpus
        hansard.corpora.create(key=corpus, name="Library")
        search = {"query_configuration": {"search": {"corpora": [{"corpus_key": corpus}]}}}
        for key, tools in (
            (f"{corpus}-keeper", {"keep": {"document_index": {"corpus_key": corpus}}}),
            (f"{corpus}-reader", {"find": {"corpora_search": search}}),
            (f"{corpus}-desk", {tool: {tool: {}} for tool in _FILE_TOOLS}),
        ):
            hansard.agents.create(
                key=key, name=key, model="hansard/extractive", tool_configurations=tools
            )

    def fill(self, documents: Iterable[Document]) -> dict[str, str]:
        """Have the documents put into the corpus; return their ids there, by name."""
        session = self._session("keeper")
        ids = {each.name: self._upload(session, each) for each in documents}
        said = session.ask("Please put all files into the collection.").text
        for name, document_id in ids.items():
            assert f"as document {document_id}:" in said, (name, said)
        return ids

    def ask_corpus(self, documents: Sequence[Document], ids: dict[str, str]) -> Marks:
        """Ask about the documents, each question in a session of its own."""
        marks = Marks()
        for document in documents:
            for question in document.questions:
                answer = self._session("reader").ask(question.text).text
                marks.add(question, answer, ids[document.name])
        return marks

    def ask_files(self, documents: Sequence[Document]) -> Marks:
        """Ask about the documents in one session that has them as files."""
        session = self._session("desk")
        ids = {each.name: self._upload(session, each) for each in documents}
        marks = Marks()
        for document in documents:
            for question in document.questions:
                marks.add(question, session.ask(question.text).text, ids[document.name])
        return marks

    def _session(self, agent_key: str) -> Session:
        return self._hansard.session(
            self._hansard.sessions.create(f"{self._corpus}-{agent_key}", name="Quiz")
        )

    def _upload(self, session: Session, document: Document) -> str:
        event = session.artifacts.upload(
            File(source=document.to_file(), filename=document.filename)
        )
        artifact_id: str = event.artifact_upload.artifacts[0].artifact_id
        return artifact_id
