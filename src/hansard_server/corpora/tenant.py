"""The corpora of one tenant, as its agents' tools have them."""

from __future__ import annotations

from collections.abc import Sequence

from hansard.v1 import corpus_pb2, corpus_service_pb2
from hansard_server.corpora.corpora import Corpora
from hansard_server.corpora.messages import to_document, to_found_passage
from hansard_server.corpora.search import CorpusSearch


class TenantCorpora:
    """An agents.api.CorporaAccess."""

    def __init__(self, tenant: str, corpora: Corpora, search: CorpusSearch) -> None:
        self._tenant = tenant
        self._corpora = corpora
        self._search = search

    async def search(
        self, request: corpus_service_pb2.SearchCorporaRequest
    ) -> Sequence[corpus_pb2.FoundPassage]:
        """Return the passages that fit best, the best first; as CorpusSearch.search."""
        found = await self._search.search(self._tenant, request)
        return [to_found_passage(passage) for passage in found]

    async def index(self, request: corpus_service_pb2.IndexDocumentRequest) -> corpus_pb2.Document:
        """Return the document once it can be found; as Corpora.index."""
        document = await self._corpora.index(self._tenant, request)
        return to_document(document, request.corpus_key)
