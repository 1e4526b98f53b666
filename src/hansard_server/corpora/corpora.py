"""What one may do with corpora and their documents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from hansard.v1 import corpus_service_pb2, paging_pb2
from hansard_server.corpora.passages import split_text
from hansard_server.corpora.terms import CorpusTerms
from hansard_server.domain import keys
from hansard_server.domain.clock import MICROSECONDS_PER_SECOND, Clock, now_us
from hansard_server.domain.corpora import CorpusRecord, DocumentRecord, IndexedPassage
from hansard_server.domain.errors import (
    CorpusAlreadyExists,
    CorpusNotFound,
    DomainError,
    InvalidMetadata,
    PayloadTooLarge,
)
from hansard_server.domain.limits import Limits
from hansard_server.domain.records import Claim
from hansard_server.failpoints import hit
from hansard_server.repository.api import CreationScan, Position, ReadTx, Store, WriteTx
from hansard_server.resources.fingerprints import answer_once, claim_of, first_answer
from hansard_server.resources.listing import ROW_OVERHEAD_BYTES
from hansard_server.resources.metadata import check_struct
from hansard_server.resources.paging import (
    Page,
    PageTokens,
    pack_position,
    page_limit,
    query_of,
    scan_page,
    unpack_position,
)

T = TypeVar("T")
ListRequest = corpus_service_pb2.ListCorporaRequest | corpus_service_pb2.ListDocumentsRequest

PASSAGES_AT_ONCE = 128
"""So many are written in one transaction: nobody waits for it long."""
_KEY_TRIES = 8
_GIVE_UP_AFTER_US = 3_600 * MICROSECONDS_PER_SECOND
_CUT_AT_ONCE = 2


class Corpora:
    """Creates, gets, lists and deletes corpora and documents. Requests keep to the contract."""

    def __init__(
        self, store: Store, *, limits: Limits, tokens: PageTokens, clock: Clock = now_us
    ) -> None:
        self._store = store
        self._limits = limits
        self._tokens = tokens
        self._clock = clock
        self._cutting = asyncio.Semaphore(_CUT_AT_ONCE)

    async def create(
        self, tenant: str, request: corpus_service_pb2.CreateCorpusRequest
    ) -> CorpusRecord:
        """Return the new corpus, or the one of this request_id.

        Raises RequestIdReused, InvalidMetadata, CorpusAlreadyExists.
        """
        fault = _fault_of(request.metadata, self._limits)
        claim = claim_of(request.request_id, request)
        uid, now = keys.make_uid(), self._clock()

        def make(tx: WriteTx) -> CorpusRecord:
            if fault is not None:
                raise fault
            corpus = CorpusRecord(
                tenant=tenant,
                uid=uid,
                key=_free_key(tx, tenant, request),
                name=request.name,
                description=request.description,
                metadata=request.metadata.SerializeToString(deterministic=True),
                document_count=0,
                passage_count=0,
                created_at_us=now,
            )
            tx.insert_corpus(corpus, claim)
            return corpus

        return await self._store.write(
            lambda tx: answer_once(
                partial(_first_corpus, tx, tenant, claim), partial(make, tx), CorpusAlreadyExists
            )
        )

    async def get(self, tenant: str, corpus_key: str) -> CorpusRecord:
        """Return the corpus. Raises CorpusNotFound."""
        return await self._store.read(lambda tx: tx.get_corpus(tenant, corpus_key))

    async def list(
        self, tenant: str, request: corpus_service_pb2.ListCorporaRequest
    ) -> Page[CorpusRecord]:
        """Return a page of the corpora. Raises InvalidPageToken."""
        return await self._page(
            tenant,
            request,
            lambda tx, part: tx.scan_corpora(tenant, part),
            position=lambda corpus: Position(corpus.created_at_us, corpus.uid),
            size=lambda corpus: (
                ROW_OVERHEAD_BYTES
                + 4 * (len(corpus.name) + len(corpus.description))
                + len(corpus.metadata)
            ),
        )

    async def delete(self, tenant: str, corpus_key: str) -> None:
        """Delete the corpus with its documents. Raises CorpusNotFound."""
        now = self._clock()

        def decide(tx: WriteTx) -> None:
            tx.delete_corpus(tenant, tx.get_corpus(tenant, corpus_key).uid, now)

        await self._store.write(decide)

    async def index(
        self, tenant: str, request: corpus_service_pb2.IndexDocumentRequest
    ) -> DocumentRecord:
        """Return the document once it can be found, or the first answer to this request_id.

        Raises CorpusNotFound, RequestIdReused, PayloadTooLarge, InvalidMetadata, StoreUnavailable.
        """
        claim = claim_of(request.request_id, request)

        def look(tx: ReadTx) -> tuple[CorpusRecord, DocumentRecord | None]:
            corpus = tx.get_corpus(tenant, request.corpus_key)
            return corpus, _first_document(tx, corpus, claim)

        corpus, first = await self._store.read(look)
        if first is not None:
            return first
        size = len(request.text.encode())
        if size > self._limits.document_max_bytes:
            raise PayloadTooLarge(
                f"text: has {size} bytes, {self._limits.document_max_bytes} are taken at most",
                metadata={"document_max_bytes": str(self._limits.document_max_bytes)},
            )
        fault = _fault_of(request.metadata, self._limits) or _nul_of(request.metadata)
        if fault is not None:
            raise fault
        fields: dict[str, Any] = MessageToDict(request.metadata)
        async with self._cutting:
            uid = keys.make_uid()
            indexed = await asyncio.to_thread(_index, corpus.uid, uid, request.text, fields)
            now = self._clock()
            document = DocumentRecord(
                tenant=tenant,
                corpus_uid=corpus.uid,
                uid=uid,
                id=request.document_id or keys.make_document_id(),
                metadata=request.metadata.SerializeToString(deterministic=True),
                fields=fields,
                size_bytes=size,
                passage_count=len(indexed),
                created_at_us=now,
                updated_at_us=now,
            )
            return await self._write(corpus, document, indexed, claim)

    async def list_documents(
        self, tenant: str, request: corpus_service_pb2.ListDocumentsRequest
    ) -> Page[DocumentRecord]:
        """Return a page of the documents. Raises CorpusNotFound, InvalidPageToken."""
        corpus = await self.get(tenant, request.corpus_key)
        return await self._page(
            tenant,
            request,
            lambda tx, part: tx.scan_documents(tenant, corpus.uid, part),
            position=lambda document: Position(document.updated_at_us, document.uid),
            size=lambda document: ROW_OVERHEAD_BYTES + len(document.metadata),
        )

    async def delete_document(
        self, tenant: str, request: corpus_service_pb2.DeleteDocumentRequest
    ) -> None:
        """Delete the document. Raises CorpusNotFound, DocumentNotFound."""
        now = self._clock()

        def decide(tx: WriteTx) -> None:
            corpus = tx.get_corpus(tenant, request.corpus_key)
            tx.delete_document(tenant, corpus.uid, request.document_id, now)

        await self._store.write(decide)

    async def _page(
        self,
        tenant: str,
        request: ListRequest,
        fetch: Callable[[ReadTx, CreationScan], Sequence[T]],
        *,
        position: Callable[[T], Position],
        size: Callable[[T], int],
    ) -> Page[T]:
        query = query_of(tenant, request)
        scan = CreationScan(
            limit=page_limit(request.page_size),
            after=unpack_position(self._tokens.read(query, request.page_token)),
            descending=request.order != paging_pb2.SORT_ORDER_ASCENDING,
        )
        found = await self._store.read(
            lambda tx: scan_page(
                lambda part: fetch(tx, part),
                scan,
                position=position,
                size=size,
                matches=lambda _: True,
            )
        )
        if found.position is None:
            return Page(found.items, "")
        return Page(found.items, self._tokens.make(query, pack_position(found.position)))

    async def _write(
        self,
        corpus: CorpusRecord,
        document: DocumentRecord,
        indexed: Sequence[IndexedPassage],
        claim: Claim | None,
    ) -> DocumentRecord:
        """Write the document in pieces, the last of which makes it visible."""
        pieces = [
            indexed[start : start + PASSAGES_AT_ONCE]
            for start in range(0, max(1, len(indexed)), PASSAGES_AT_ONCE)
        ]

        def write(number: int) -> Any:
            def decide(tx: WriteTx) -> DocumentRecord | None:
                if number == 0:
                    tx.begin_document(document, document.created_at_us + _GIVE_UP_AFTER_US)
                tx.add_passages(document, pieces[number])
                if number + 1 < len(pieces):
                    return None
                first = _first_document(tx, corpus, claim)
                return first or tx.finish_document(document, claim, self._clock())

            return decide

        for number in range(len(pieces) - 1):
            await self._store.write(write(number))
            hit("corpora.piece")
        finished: DocumentRecord = await self._store.write(write(len(pieces) - 1))
        return finished


def _index(
    corpus_uid: str, document_uid: str, text: str, fields: dict[str, Any]
) -> list[IndexedPassage]:
    made = CorpusTerms(corpus_uid).of_passages(split_text(text), fields, document_uid)
    return [IndexedPassage(*passage) for passage in made]


def _first_document(tx: ReadTx, corpus: CorpusRecord, claim: Claim | None) -> DocumentRecord | None:
    if claim is None:
        return None
    return first_answer(tx.find_document_claim(corpus.tenant, corpus.uid, claim.request_id), claim)


def _first_corpus(tx: ReadTx, tenant: str, claim: Claim | None) -> CorpusRecord | None:
    if claim is None:
        return None
    return first_answer(tx.find_corpus_claim(tenant, claim.request_id), claim)


def _free_key(tx: WriteTx, tenant: str, request: corpus_service_pb2.CreateCorpusRequest) -> str:
    if request.key:
        if _is_taken(tx, tenant, request.key):
            raise CorpusAlreadyExists(f"there is a corpus {request.key} already")
        return request.key
    for _ in range(_KEY_TRIES):
        key = keys.make_corpus_key(request.name)
        if not _is_taken(tx, tenant, key):
            return key
    raise CorpusAlreadyExists("no free key was found for this name; name one")


def _is_taken(tx: WriteTx, tenant: str, key: str) -> bool:
    try:
        tx.get_corpus(tenant, key)
    except CorpusNotFound:
        return False
    return True


def _fault_of(metadata: Struct, limits: Limits) -> DomainError | None:
    try:
        check_struct(metadata, "metadata", limits)
    except InvalidMetadata as error:
        return error
    return None


def _nul_of(metadata: Struct) -> DomainError | None:
    # In serialized bytes a NUL may be anything; in no database's JSON can one be in a text.
    if b"\0" in metadata.SerializeToString() and "\0" in _texts(MessageToDict(metadata)):
        return InvalidMetadata.of_field("metadata", "holds a NUL character")
    return None


def _texts(value: Any) -> str:
    """Return all names and texts of a JSON value behind each other."""
    match value:
        case str():
            return value
        case dict():
            return "".join(_texts(part) for item in value.items() for part in item)
        case list():
            return "".join(map(_texts, value))
    return ""
