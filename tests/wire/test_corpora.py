"""Corpora over the wire: documents go in, passages come out, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from hansard.v1 import (
    agent_pb2,
    agent_service_pb2,
    artifact_service_pb2,
    corpus_pb2,
    corpus_service_pb2,
    session_pb2,
    session_service_pb2,
)
from tests.support.documents import make_docx, make_pdf
from tests.support.server import Running, failure
from tests.support.talk import Talk, model, stored

wire = corpus_service_pb2


async def make_corpus(hansard: Running, key: str = "docs", **fields: Any) -> corpus_pb2.Corpus:
    return await hansard.corpora.CreateCorpus(
        wire.CreateCorpusRequest(key=key, name="Company documents", **fields)
    )


async def index(
    hansard: Running, document_id: str, text: str, corpus_key: str = "docs", **metadata: Any
) -> corpus_pb2.Document:
    return await hansard.corpora.IndexDocument(
        wire.IndexDocumentRequest(
            corpus_key=corpus_key, document_id=document_id, text=text, metadata=metadata
        )
    )


async def search(
    hansard: Running, query: str, metadata_filter: str = "", *keys: str, **fields: Any
) -> list[corpus_pb2.FoundPassage]:
    corpora = [corpus_pb2.CorpusSearch(corpus_key=key) for key in keys or ("docs",)]
    answer = await hansard.corpora.SearchCorpora(
        wire.SearchCorporaRequest(
            query=query, corpora=corpora, metadata_filter=metadata_filter, **fields
        )
    )
    return list(answer.passages)


async def found(hansard: Running, query: str, *more: str) -> list[str]:
    return [passage.document_id for passage in await search(hansard, query, *more)]


async def test_documents_are_found_by_their_words(hansard: Running) -> None:
    made = await make_corpus(hansard)
    await index(hansard, "refunds", "# Refunds\n\nWe refund purchases within thirty days.")
    await index(hansard, "shipping", "# Shipping\n\nParcels arrive in two days. Café délivré.")
    passages = await search(hansard, "How long do refunds take?")
    assert [(p.document_id, p.passage, list(p.headings)) for p in passages] == [
        ("refunds", 1, ["Refunds"])
    ]
    assert passages[0].text == "# Refunds\n\nWe refund purchases within thirty days."
    assert passages[0].score > 0
    assert await found(hansard, "cafe DELIVRE") == ["shipping"]
    assert await found(hansard, "days") == ["refunds", "shipping"]
    assert await found(hansard, "the of and") == []
    assert await found(hansard, "zebra") == []
    corpus = await hansard.corpora.GetCorpus(wire.GetCorpusRequest(corpus_key="docs"))
    assert (corpus.uid, corpus.document_count, corpus.passage_count) == (made.uid, 2, 2)


async def test_replaced_and_deleted_documents_are_gone_at_once(hansard: Running) -> None:
    await make_corpus(hansard)
    first = await index(hansard, "a", "Old words about walruses.", lang="en")
    again = await index(hansard, "a", "New words about penguins.", lang="de")
    assert again.created_at == first.created_at
    assert again.updated_at.ToNanoseconds() > first.updated_at.ToNanoseconds()
    assert await found(hansard, "walruses") == []
    assert await found(hansard, "penguins", "doc.lang = 'de'") == ["a"]
    listed = await hansard.corpora.ListDocuments(wire.ListDocumentsRequest(corpus_key="docs"))
    assert list(listed.documents) == [again]
    request = wire.DeleteDocumentRequest(corpus_key="docs", document_id="a")
    await hansard.corpora.DeleteDocument(request)
    assert await found(hansard, "penguins") == []
    assert (await failure(hansard.corpora.DeleteDocument(request))).reason == "DOCUMENT_NOT_FOUND"
    corpus = await hansard.corpora.GetCorpus(wire.GetCorpusRequest(corpus_key="docs"))
    assert (corpus.document_count, corpus.passage_count) == (0, 0)


async def test_deleted_corpus_is_gone_and_its_key_free(hansard: Running) -> None:
    await make_corpus(hansard)
    await index(hansard, "a", "Words about walruses.")
    taken = await failure(make_corpus(hansard))
    assert (taken.code, taken.reason) == (grpc.StatusCode.ALREADY_EXISTS, "CORPUS_ALREADY_EXISTS")
    await hansard.corpora.DeleteCorpus(wire.DeleteCorpusRequest(corpus_key="docs"))
    missing = await failure(search(hansard, "walruses"))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "CORPUS_NOT_FOUND")
    assert (await failure(index(hansard, "a", "x"))).reason == "CORPUS_NOT_FOUND"
    await make_corpus(hansard)
    assert await search(hansard, "walruses") == []


async def test_same_request_makes_one_corpus_and_one_document(hansard: Running) -> None:
    made = await make_corpus(hansard, request_id="r1")
    assert await make_corpus(hansard, request_id="r1") == made
    reused = await failure(make_corpus(hansard, request_id="r1", description="other"))
    assert reused.reason == "REQUEST_ID_REUSED"
    request = wire.IndexDocumentRequest(corpus_key="docs", text="Walruses.", request_id="r2")
    first = await hansard.corpora.IndexDocument(request)
    assert first.document_id.startswith("doc_")
    await index(hansard, first.document_id, "Penguins.")
    again = await hansard.corpora.IndexDocument(request)
    assert (again.document_id, again.size_bytes) == (first.document_id, first.size_bytes)
    assert await found(hansard, "walruses") == []
    request.text = "Seals."
    assert (await failure(hansard.corpora.IndexDocument(request))).reason == "REQUEST_ID_REUSED"


async def test_large_documents_appear_whole(hansard: Running) -> None:
    await make_corpus(hansard)
    text = "\n\n".join(f"Paragraph {n} of walrus{n}. " + "filler " * 120 for n in range(300))
    document = await index(hansard, "large", text)
    assert document.passage_count == 300
    for number in (0, 150, 299):
        (passage,) = await search(hansard, f"walrus{number}")
        assert (passage.passage, passage.text.split()[1]) == (number + 1, str(number))
    too_large = await failure(index(hansard, "larger", "x" * (2**20 + 1)))
    assert too_large.reason == "PAYLOAD_TOO_LARGE"


async def test_lists_come_in_pages(hansard: Running) -> None:
    for number in range(5):
        await make_corpus(hansard, f"c{number}")
        await index(hansard, f"d{number}", f"Text {number}.", "c0")
    keys: list[str] = []
    ids: list[str] = []
    corpora, documents = wire.ListCorporaResponse(), wire.ListDocumentsResponse()
    for _ in range(3):
        corpora = await hansard.corpora.ListCorpora(
            wire.ListCorporaRequest(page_size=2, page_token=corpora.next_page_token)
        )
        documents = await hansard.corpora.ListDocuments(
            wire.ListDocumentsRequest(
                corpus_key="c0", page_size=2, page_token=documents.next_page_token
            )
        )
        keys += [corpus.key for corpus in corpora.corpora]
        ids += [document.document_id for document in documents.documents]
    assert keys == ["c4", "c3", "c2", "c1", "c0"]
    assert ids == ["d4", "d3", "d2", "d1", "d0"]
    assert corpora.next_page_token == documents.next_page_token == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("doc.a = ", "column"),
        ("doc.a = doc.b", "column"),
        ("a = 1", "doc.name"),
        ("doc.a LIKE 'x%'", "knows"),
        ("doc.a = 'x'; DROP TABLE documents", "column"),
        ("doc.a = (SELECT 1)", "value"),
        ("doc.a = 'x", "quote"),
    ],
)
async def test_bad_filters_say_where(hansard: Running, text: str, says: str) -> None:
    await make_corpus(hansard)
    bad = await failure(search(hansard, "x", text))
    assert (bad.reason, bad.fields) == ("INVALID_REQUEST", ("metadata_filter",))
    assert says in bad.message


async def test_metadata_that_no_database_can_hold_is_refused(hansard: Running) -> None:
    await make_corpus(hansard)
    bad = await failure(index(hansard, "a", "x", name="a\0b"))
    assert (bad.reason, bad.fields) == ("INVALID_METADATA", ("metadata",))


# The tools ----------------------------------------------------------------------------------------

QUERY = {"search": {"corpora": [{"corpus_key": "docs"}]}}


async def make_agent(
    hansard: Running, script: Sequence[dict[str, Any]] = (), key: str = "agent", **tools: Any
) -> Talk:
    """Make an agent with these tools, which it calls as the script says."""
    await hansard.agents.CreateAgent(
        agent_service_pb2.CreateAgentRequest(
            key=key,
            name="Agent",
            model=model(script or None),
            tool_configurations={
                name: agent_pb2.ToolConfiguration(**tool) for name, tool in tools.items()
            },
        )
    )
    return Talk(hansard, key)


async def make_searcher(
    hansard: Running,
    arguments: dict[str, Any],
    override: dict[str, Any],
    query: dict[str, Any] | None = None,
    **metadata: Any,
) -> Talk:
    """Make an agent whose model searches with these arguments, and a session with metadata."""
    tool = {
        "argument_override": override,
        "corpora_search": {"query_configuration": query or QUERY},
    }
    talk = await make_agent(hansard, call("find", **arguments), find=tool)
    await hansard.sessions.CreateSession(
        session_service_pb2.CreateSessionRequest(
            agent_key="agent", key="s", name="S", metadata=metadata
        )
    )
    return talk


def call(name: str, **arguments: Any) -> list[dict[str, Any]]:
    return [{"tool_call": {"name": name, "input": arguments}}]


KEEP = {"keep": {"document_index": {"corpus_key": "docs"}}}


async def answer(talk: Talk) -> Any:
    events = stored(await talk.send())
    (output,) = [event.tool_output for event in events if event.HasField("tool_output")]
    return json.loads(output.tool_output_json)


def ids(output: Any) -> list[str]:
    return [passage["document_id"] for passage in output["passages"]]


GUIDE = {"metadata_filter": "doc.access_level = '${session.metadata.user_role}'"}


@pytest.mark.parametrize(
    "asked",
    ["", "doc.access_level = 'admin'", "1 = 1", "doc.access_level = 'admin' OR doc.x IS NULL"],
)
async def test_session_finds_what_its_role_may(hansard: Running, asked: str) -> None:
    await make_corpus(hansard)
    for level in ("premium", "basic", "admin"):
        await index(hansard, level, f"Walruses for {level} eyes.", access_level=level)
    await index(hansard, "none", "Walruses for nobody's eyes.")
    arguments = {"query": "walruses", **({"metadata_filter": asked} if asked else {})}
    talk = await make_searcher(hansard, arguments, GUIDE, user_role="premium")
    output = await answer(talk)
    assert ids(output) == ["premium"]
    assert output["passages"][0]["metadata"] == {"access_level": "premium"}
    await set_metadata(hansard, user_role="basic")
    assert ids(await answer(talk)) == ["basic"]


@pytest.mark.parametrize(
    "role",
    [
        "x' OR doc.access_level = 'admin",
        "' OR 1 = 1 --",
        "x'' OR ''y'' = ''y",
        "${session.metadata.other}",
        "x\\' OR doc.access_level = 'admin",
        '" OR "" = "',
        "premium'/*",
    ],
)
async def test_hostile_metadata_is_only_a_value(hansard: Running, role: str) -> None:
    await make_corpus(hansard)
    await index(hansard, "admin", "Walruses.", access_level="admin")
    await index(hansard, "theirs", "Walruses.", access_level=role)
    talk = await make_searcher(hansard, {"query": "walruses"}, GUIDE, user_role=role, other="admin")
    assert ids(await answer(talk)) == ["theirs"]


async def test_filter_of_the_configuration_holds_beside_the_models(hansard: Running) -> None:
    await make_corpus(hansard)
    for year in (2023, 2024):
        for lang in ("en", "de"):
            await index(hansard, f"{lang}{year}", "Walruses.", lang=lang, year=year)
    query = {
        "search": {
            "corpora": [
                {"corpus_key": "docs", "metadata_filter": "doc.year = ${session.metadata.year}"}
            ],
            "limit": 3,
        }
    }
    arguments = {"query": "walruses", "metadata_filter": "doc.lang = 'de'", "limit": 50}
    talk = await make_searcher(hansard, arguments, {}, query, year=2024)
    assert ids(await answer(talk)) == ["de2024"]


async def test_missing_metadata_ends_the_turn(hansard: Running) -> None:
    await make_corpus(hansard)
    await index(hansard, "none", "Walruses.")
    talk = await make_searcher(hansard, {"query": "walruses"}, GUIDE)
    end = (await talk.send())[-1].turn_end
    assert "session.metadata.user_role is not set" in end.turn.error.message


async def test_bad_filters_are_refused_with_the_agent(hansard: Running) -> None:
    bad = await failure(
        make_searcher(
            hansard, {"query": "x"}, {"metadata_filter": "doc.a LIKE '${session.metadata.x}'"}
        )
    )
    assert bad.reason == "INVALID_AGENT_CONFIGURATION"
    assert bad.fields == ("tool_configurations.find.argument_override.metadata_filter",)


async def test_what_one_session_indexes_another_finds(hansard: Running) -> None:
    await make_corpus(hansard)
    script = call("create", filename="notes.md", content="# Notes\n\nWalruses sleep at sea.")
    writer = await make_agent(hansard, script, "writer", create={"artifact_create": {}}, **KEEP)
    await writer.open_session()
    artifact_id = (await answer(writer))["artifact_id"]
    await writer.set_model(model(call("keep", artifact_id=artifact_id, metadata={"lang": "en"})))
    kept = await answer(writer)
    assert kept == {"corpus_key": "docs", "document_id": artifact_id, "passages": 1}
    reader = await make_searcher(
        hansard, {"query": "where do walruses sleep?"}, {"metadata_filter": "doc.lang = 'en'"}
    )
    (passage,) = (await answer(reader))["passages"]
    assert passage["text"] == "# Notes\n\nWalruses sleep at sea."
    assert passage["metadata"] == {"filename": "notes.md", "lang": "en"}


async def set_metadata(hansard: Running, **metadata: Any) -> None:
    await hansard.sessions.UpdateSession(
        session_service_pb2.UpdateSessionRequest(
            session=session_pb2.Session(agent_key="agent", key="s", metadata=metadata),
            update_mask={"paths": ["metadata"]},
        )
    )


WALRUS = "Walruses sleep in the water, held up by pouches of air."


@pytest.mark.parametrize(
    ("filename", "data"),
    [
        ("walruses.pdf", make_pdf("About walruses", WALRUS)),
        ("walruses.docx", make_docx("About walruses", WALRUS)),
        ("walruses.txt", b"\xef\xbb\xbfAbout walruses\n\n" + WALRUS.encode()),
    ],
)
async def test_a_real_document_is_found_from_another_session(
    plain: Running, filename: str, data: bytes
) -> None:
    await make_corpus(plain)
    writer = await make_agent(plain, key="writer", **KEEP)
    await writer.open_session()
    artifact_id = await upload(writer, filename, data)
    await writer.set_model(model(call("keep", artifact_id=artifact_id, document_id=filename)))
    assert (await answer(writer))["document_id"] == filename
    reader = await make_searcher(plain, {"query": "Where do walruses sleep?"}, {})
    (passage,) = (await answer(reader))["passages"]
    assert (passage["document_id"], passage["metadata"]) == (filename, {"filename": filename})
    assert WALRUS in " ".join(passage["text"].split())


@pytest.mark.parametrize(
    ("filename", "data", "says"),
    [
        ("broken.pdf", b"%PDF-1.7 broken", "not converted"),
        ("empty.txt", b" \n", "no text"),
        ("large.txt", b"word " * 250_000, "1048576"),
        ("some.bin", bytes(range(256)), "no document"),
    ],
)
async def test_documents_that_can_not_be_indexed_are_errors_of_the_tool(
    plain: Running, filename: str, data: bytes, says: str
) -> None:
    await make_corpus(plain)
    writer = await make_agent(plain, key="writer", **KEEP)
    await writer.open_session()
    artifact_id = await upload(writer, filename, data)
    await writer.set_model(model(call("keep", artifact_id=artifact_id)))
    events = stored(await writer.send())
    (output,) = [event.tool_output for event in events if event.HasField("tool_output")]
    assert output.error
    assert says in output.tool_output_json
    assert await found(plain, "walruses word") == []


async def upload(talk: Talk, filename: str, data: bytes) -> str:
    part = artifact_service_pb2.UploadArtifactsRequest

    async def parts() -> AsyncIterator[artifact_service_pb2.UploadArtifactsRequest]:
        yield part(start=artifact_service_pb2.UploadStart(**talk.keys))
        yield part(header=artifact_service_pb2.UploadHeader(filename=filename))
        for start in range(0, len(data), 2**20):
            yield part(chunk=data[start : start + 2**20])

    event = await talk.server.artifacts.UploadArtifacts(parts())
    return event.artifact_upload.artifacts[0].artifact_id
