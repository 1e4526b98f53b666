"""CorpusService on the wire."""

from __future__ import annotations

from typing import Any

import grpc.aio

from hansard.v1 import corpus_pb2, corpus_service_pb2, corpus_service_pb2_grpc
from hansard_server.corpora.corpora import Corpora
from hansard_server.corpora.messages import to_corpus, to_document, to_found_passage
from hansard_server.corpora.search import CorpusSearch
from hansard_server.servicers.caller import current_tenant

Context = grpc.aio.ServicerContext[Any, Any]


class CorpusServicer(corpus_service_pb2_grpc.CorpusServiceServicer):
    """Converts, calls, converts."""

    def __init__(self, corpora: Corpora, search: CorpusSearch) -> None:
        self._corpora = corpora
        self._search = search

    async def CreateCorpus(
        self, request: corpus_service_pb2.CreateCorpusRequest, _context: Context
    ) -> corpus_pb2.Corpus:
        """See the contract."""
        return to_corpus(await self._corpora.create(current_tenant(), request))

    async def GetCorpus(
        self, request: corpus_service_pb2.GetCorpusRequest, _context: Context
    ) -> corpus_pb2.Corpus:
        """See the contract."""
        return to_corpus(await self._corpora.get(current_tenant(), request.corpus_key))

    async def ListCorpora(
        self, request: corpus_service_pb2.ListCorporaRequest, _context: Context
    ) -> corpus_service_pb2.ListCorporaResponse:
        """See the contract."""
        page = await self._corpora.list(current_tenant(), request)
        return corpus_service_pb2.ListCorporaResponse(
            corpora=map(to_corpus, page.items), next_page_token=page.next_token
        )

    async def DeleteCorpus(
        self, request: corpus_service_pb2.DeleteCorpusRequest, _context: Context
    ) -> corpus_service_pb2.DeleteCorpusResponse:
        """See the contract."""
        await self._corpora.delete(current_tenant(), request.corpus_key)
        return corpus_service_pb2.DeleteCorpusResponse()

    async def IndexDocument(
        self, request: corpus_service_pb2.IndexDocumentRequest, _context: Context
    ) -> corpus_pb2.Document:
        """See the contract."""
        document = await self._corpora.index(current_tenant(), request)
        return to_document(document, request.corpus_key)

    async def ListDocuments(
        self, request: corpus_service_pb2.ListDocumentsRequest, _context: Context
    ) -> corpus_service_pb2.ListDocumentsResponse:
        """See the contract."""
        page = await self._corpora.list_documents(current_tenant(), request)
        return corpus_service_pb2.ListDocumentsResponse(
            documents=[to_document(document, request.corpus_key) for document in page.items],
            next_page_token=page.next_token,
        )

    async def DeleteDocument(
        self, request: corpus_service_pb2.DeleteDocumentRequest, _context: Context
    ) -> corpus_service_pb2.DeleteDocumentResponse:
        """See the contract."""
        await self._corpora.delete_document(current_tenant(), request)
        return corpus_service_pb2.DeleteDocumentResponse()

    async def SearchCorpora(
        self, request: corpus_service_pb2.SearchCorporaRequest, _context: Context
    ) -> corpus_service_pb2.SearchCorporaResponse:
        """See the contract."""
        found = await self._search.search(current_tenant(), request)
        return corpus_service_pb2.SearchCorporaResponse(passages=map(to_found_passage, found))
