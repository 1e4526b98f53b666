"""Corpora for tests: made, filled and searched without a wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hansard.v1 import corpus_pb2, corpus_service_pb2
from hansard_server.corpora.corpora import Corpora
from hansard_server.corpora.search import CorpusSearch, Found
from hansard_server.domain.clock import Clock, now_us
from hansard_server.domain.corpora import CorpusRecord, DocumentRecord
from hansard_server.domain.limits import Limits
from hansard_server.repository.api import Store
from hansard_server.resources.paging import PageTokens
from tests.support.records import TENANT


class Library:
    """The corpora of one tenant."""

    def __init__(self, store: Store, tenant: str = TENANT, clock: Clock = now_us) -> None:
        self.corpora = Corpora(store, limits=Limits(), tokens=PageTokens(b"s" * 32), clock=clock)
        self._search = CorpusSearch(store)
        self._tenant = tenant

    async def make(self, key: str = "docs") -> CorpusRecord:
        """Create a corpus."""
        request = corpus_service_pb2.CreateCorpusRequest(key=key, name="Documents")
        return await self.corpora.create(self._tenant, request)

    async def index(
        self, document_id: str, text: str, corpus_key: str = "docs", **metadata: Any
    ) -> DocumentRecord:
        """Index a document."""
        request = corpus_service_pb2.IndexDocumentRequest(
            corpus_key=corpus_key, document_id=document_id, text=text, metadata=metadata
        )
        return await self.corpora.index(self._tenant, request)

    async def search(
        self, query: str, keys: Sequence[str] = ("docs",), limit: int = 0, **fields: Any
    ) -> list[Found]:
        """Search corpora."""
        corpora = [corpus_pb2.CorpusSearch(corpus_key=key) for key in keys]
        request = corpus_service_pb2.SearchCorporaRequest(
            query=query, corpora=corpora, limit=limit, **fields
        )
        return await self._search.search(self._tenant, request)

    async def ids(self, query: str, keys: Sequence[str] = ("docs",), **fields: Any) -> list[str]:
        """Return the documents of what a search finds."""
        return [found.stored.document_id for found in await self.search(query, keys, **fields)]
