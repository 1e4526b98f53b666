"""Corpora: documents that many sessions search."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from google.protobuf.struct_pb2 import Struct

from hansard.v1 import corpus_service_pb2 as wire
from hansard.v1.corpus_pb2 import Corpus, CorpusSearch, Document, FoundPassage
from hansard_client import rpcs
from hansard_client.errors import CorpusNotFound
from hansard_client.link import Link
from hansard_client.operations import resources
from hansard_client.operations.values import (
    Fields,
    given,
    new_request_id,
    to_message,
    to_order,
    to_struct,
)


async def create(
    link: Link,
    *,
    name: str,
    key: str = "",
    description: str = "",
    metadata: Struct | Fields | None = None,
    request_id: str | None = None,
) -> Corpus:
    """Create an empty corpus and return it.

    Args:
        name: what people call it.
        key: its key; left out, it is made from the name.
        description: what it is for.
        metadata: anything to keep with it.
        request_id: by default a new one, under which the call is repeated when it breaks.

    Raises CorpusAlreadyExists, Forbidden.
    """
    request = wire.CreateCorpusRequest(
        name=name,
        key=key,
        description=description,
        request_id=request_id or new_request_id(),
        **given(metadata=to_struct(metadata)),
    )
    return await link.call(rpcs.CREATE_CORPUS, request)


async def get(link: Link, corpus_key: str) -> Corpus:
    """Return the corpus. Raises CorpusNotFound."""
    return await link.call(rpcs.GET_CORPUS, wire.GetCorpusRequest(corpus_key=corpus_key))


def list_(
    link: Link,
    *,
    newest_first: bool | None = None,
    limit: int | None = None,
    page_size: int = 0,
) -> AsyncGenerator[Corpus, None]:
    """Yield corpora, the newest first unless said otherwise, fetched page by page.

    `limit`: at most so many; None: all. `page_size`: how many are fetched at a time; 0: as many as
    the server likes.
    """
    request = wire.ListCorporaRequest(
        page_size=page_size, order=to_order(newest_first=newest_first)
    )
    return link.pages(rpcs.LIST_CORPORA, request, lambda page: page.corpora, limit)


async def delete(link: Link, corpus_key: str, *, uid: str = "") -> None:
    """Delete a corpus with its documents; with `uid` only in that incarnation.

    Raises CorpusNotFound.
    """
    await resources.delete(
        link,
        rpcs.DELETE_CORPUS,
        wire.DeleteCorpusRequest(corpus_key=corpus_key),
        lambda: get(link, corpus_key),
        uid,
        CorpusNotFound(f"another corpus has the key {corpus_key} now"),
    )


async def index(
    link: Link,
    corpus_key: str,
    text: str,
    *,
    document_id: str = "",
    metadata: Struct | Fields | None = None,
    request_id: str | None = None,
) -> Document:
    """Index a document, and return it: from then on it is found.

    Args:
        corpus_key: the corpus.
        text: plain or Markdown.
        document_id: one that has it is replaced; left out, a new one is made.
        metadata: what searches filter by, and anything else.
        request_id: by default a new one, under which the call is repeated when it breaks.

    Raises CorpusNotFound, PayloadTooLarge, InvalidArgument.
    """
    request = wire.IndexDocumentRequest(
        corpus_key=corpus_key,
        text=text,
        document_id=document_id,
        request_id=request_id or new_request_id(),
        **given(metadata=to_struct(metadata)),
    )
    return await link.call(rpcs.INDEX_DOCUMENT, request)


def list_documents(
    link: Link,
    corpus_key: str,
    *,
    newest_first: bool | None = None,
    limit: int | None = None,
    page_size: int = 0,
) -> AsyncGenerator[Document, None]:
    """Yield documents by their last replacement, the newest first unless said otherwise.

    The rest as in `list`. Raises CorpusNotFound.
    """
    request = wire.ListDocumentsRequest(
        corpus_key=corpus_key, page_size=page_size, order=to_order(newest_first=newest_first)
    )
    return link.pages(rpcs.LIST_DOCUMENTS, request, lambda page: page.documents, limit)


async def delete_document(link: Link, corpus_key: str, document_id: str) -> None:
    """Delete a document. Raises CorpusNotFound, DocumentNotFound."""
    request = wire.DeleteDocumentRequest(corpus_key=corpus_key, document_id=document_id)
    await link.call(rpcs.DELETE_DOCUMENT, request)


async def search(
    link: Link,
    query: str,
    corpora: Iterable[str | CorpusSearch | Fields],
    *,
    metadata_filter: str = "",
    limit: int = 0,
) -> list[FoundPassage]:
    """Return the passages that fit best, the best first.

    Args:
        query: words, or a question.
        corpora: keys; or with filters of their own.
        metadata_filter: `doc.lang = 'en' AND doc.year >= 2024`, for all of them.
        limit: how many at most; 0: 10.

    Raises CorpusNotFound, InvalidArgument.
    """
    request = wire.SearchCorporaRequest(
        query=query,
        corpora=[
            CorpusSearch(corpus_key=each)
            if isinstance(each, str)
            else to_message(CorpusSearch(), each)
            for each in corpora
        ],
        metadata_filter=metadata_filter,
        limit=limit,
    )
    return list((await link.call(rpcs.SEARCH_CORPORA, request)).passages)
