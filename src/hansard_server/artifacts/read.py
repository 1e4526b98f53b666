"""Reading and deleting artifacts: get, list, download, delete."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from hansard.v1 import artifact_pb2, paging_pb2
from hansard.v1 import artifact_service_pb2 as service_pb2
from hansard_server.artifacts.blobs import Blobs
from hansard_server.artifacts.messages import to_artifact
from hansard_server.artifacts.store_errors import BlobMissing
from hansard_server.domain.clock import Clock, now_us
from hansard_server.domain.errors import ArtifactNotFound, Internal, InvalidRequest
from hansard_server.domain.records import ArtifactRecord
from hansard_server.repository.api import CreationScan, Position, ReadTx, Store, WriteTx
from hansard_server.repository.commands import SessionName
from hansard_server.resources.paging import (
    Page,
    PageTokens,
    Scanned,
    pack_position,
    page_limit,
    query_of,
    scan_page,
    unpack_position,
)

# What the keys, ids and times of one artifact take in a page, at most.
_ROW_OVERHEAD_BYTES = 512

Named = (
    service_pb2.GetArtifactRequest
    | service_pb2.ListArtifactsRequest
    | service_pb2.DownloadArtifactRequest
    | service_pb2.DeleteArtifactRequest
)


class Artifacts:
    """The use cases of ArtifactService, but for uploads.

    An artifact whose time has run out is gone, whether or not its row has been removed yet.
    """

    def __init__(
        self, store: Store, blobs: Blobs, tokens: PageTokens, *, clock: Clock = now_us
    ) -> None:
        """Make one for all calls."""
        self._store = store
        self._blobs = blobs
        self._tokens = tokens
        self._clock = clock

    async def get(
        self, tenant: str, request: service_pb2.GetArtifactRequest
    ) -> artifact_pb2.Artifact:
        """Return the artifact. Raises AgentNotFound, SessionNotFound, ArtifactNotFound."""
        record = await self._find(tenant, request, request.artifact_id)
        return to_artifact(record, request.agent_key, request.session_key)

    async def list(
        self, tenant: str, request: service_pb2.ListArtifactsRequest
    ) -> Page[artifact_pb2.Artifact]:
        """Return a page. Raises AgentNotFound, SessionNotFound, InvalidPageToken."""
        query = query_of(tenant, request)
        scan = CreationScan(
            limit=page_limit(request.page_size),
            after=unpack_position(self._tokens.read(query, request.page_token)),
            descending=request.order == paging_pb2.SORT_ORDER_DESCENDING,
        )
        now = self._clock()

        def find(tx: ReadTx) -> Scanned[ArtifactRecord]:
            uid = tx.resolve_session(_session(tenant, request)).uid
            return scan_page(
                lambda part: tx.scan_artifacts(tenant, uid, part),
                scan,
                position=lambda record: Position(record.created_at_us, record.id),
                size=_size,
                matches=lambda record: not record.has_expired(now),
            )

        found = await self._store.read(find)
        items = tuple(
            to_artifact(record, request.agent_key, request.session_key) for record in found.items
        )
        if found.position is None:
            return Page(items, "")
        return Page(items, self._tokens.make(query, pack_position(found.position)))

    async def download(
        self, tenant: str, request: service_pb2.DownloadArtifactRequest
    ) -> AsyncGenerator[service_pb2.DownloadArtifactResponse]:
        """Yield the artifact, then its bytes from `offset` on.

        Raises AgentNotFound, SessionNotFound, ArtifactNotFound, InvalidRequest for an offset past
        the end, StoreUnavailable.
        """
        record = await self._find(tenant, request, request.artifact_id)
        rest = record.size_bytes - request.offset
        if rest < 0:
            raise InvalidRequest.of_field(
                "offset", f"is past the end: the artifact has {record.size_bytes:,} bytes"
            )
        length = min(rest, request.length) if request.HasField("length") else rest
        artifact = to_artifact(record, request.agent_key, request.session_key)
        yield service_pb2.DownloadArtifactResponse(artifact=artifact)
        async with aclosing(
            read_bytes(self._store, self._blobs, record, request.offset, length)
        ) as chunks:
            async for chunk in chunks:
                yield service_pb2.DownloadArtifactResponse(chunk=chunk)

    async def delete(self, tenant: str, request: service_pb2.DeleteArtifactRequest) -> None:
        """Delete the artifact. Raises AgentNotFound, SessionNotFound, ArtifactNotFound.

        Its bytes go with the sweep, since other sessions may share them.
        """

        def decide(tx: WriteTx) -> None:
            uid = tx.resolve_session(_session(tenant, request)).uid
            refuse_expired(tx.delete_artifact(tenant, uid, request.artifact_id), self._clock())

        await self._store.write(decide)

    async def _find(self, tenant: str, request: Named, artifact_id: str) -> ArtifactRecord:
        def find(tx: ReadTx) -> ArtifactRecord:
            uid = tx.resolve_session(_session(tenant, request)).uid
            return tx.get_artifact(tenant, uid, artifact_id)

        return refuse_expired(await self._store.read(find), self._clock())


def refuse_expired(record: ArtifactRecord, now_us: int) -> ArtifactRecord:
    """Return the record. Raises ArtifactNotFound when its time has run out."""
    if record.has_expired(now_us):
        raise ArtifactNotFound("There is no such artifact in the session.")
    return record


def without_expired(records: Sequence[ArtifactRecord], now_us: int) -> Sequence[ArtifactRecord]:
    """Return the records whose time has not run out."""
    return [record for record in records if not record.has_expired(now_us)]


async def read_bytes(
    store: Store, blobs: Blobs, record: ArtifactRecord, offset: int, length: int
) -> AsyncGenerator[bytes]:
    """Yield the artifact's bytes, which must exist, in chunks of 256 KiB.

    Raises ArtifactNotFound when the artifact is deleted meanwhile, Internal when the object store
    has lost its bytes.
    """
    try:
        async with aclosing(blobs.read(record.tenant, record.blob_key, offset, length)) as chunks:
            async for chunk in chunks:
                yield chunk
    except BlobMissing as error:
        await store.read(lambda tx: tx.get_artifact(record.tenant, record.session_uid, record.id))
        raise Internal("The artifact's bytes are not in the artifact store.") from error


def _session(tenant: str, request: Named) -> SessionName:
    return SessionName(tenant=tenant, agent_key=request.agent_key, session_key=request.session_key)


def _size(record: ArtifactRecord) -> int:
    texts = (record.filename, record.mime_type, record.description)
    return sum(len(text.encode()) for text in texts) + len(record.metadata) + _ROW_OVERHEAD_BYTES
