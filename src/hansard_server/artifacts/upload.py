"""Uploading: a stream of parts becomes files and one event, or nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import field, replace

import structlog

from hansard.v1 import artifact_service_pb2 as service_pb2
from hansard_server.artifacts.blobs import Blobs
from hansard_server.artifacts.messages import upload_payload
from hansard_server.artifacts.mime import HEAD_BYTES, sniff
from hansard_server.artifacts.writers import Blob, BlobWriter
from hansard_server.domain.clock import MICROSECONDS_PER_HOUR, Clock, now_us
from hansard_server.domain.errors import (
    ChecksumMismatch,
    DomainError,
    InvalidRequest,
    PayloadTooLarge,
    QuotaExceeded,
    QuotaUse,
    StoreUnavailable,
)
from hansard_server.domain.keys import make_artifact_id, make_event_id
from hansard_server.domain.limits import Limits
from hansard_server.domain.records import (
    ArtifactRecord,
    ArtifactSource,
    Claim,
    EventRecord,
    EventType,
)
from hansard_server.domain.values import dataclass
from hansard_server.failpoints import hit
from hansard_server.repository.api import ReadTx, Store
from hansard_server.repository.commands import (
    AppendDrafts,
    Appended,
    ArtifactQuota,
    ClaimScope,
    Draft,
    SessionName,
    Upload,
)
from hansard_server.resources.fingerprints import fingerprint
from hansard_server.resources.metadata import check_struct

UPLOAD_MAX_S = 3_600.0
"""An upload takes at most so long: the sweep must know which bytes still may become an artifact."""
_HOURS_PER_DAY = 24

_log = structlog.get_logger(__name__)

Part = service_pb2.UploadArtifactsRequest | memoryview
"""A part of an upload; the bytes of a chunk may come without the message around them."""
Parts = AsyncIterator[Part]


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The event that an upload made, and its session's keys."""

    event: EventRecord
    agent_key: str
    session_key: str


class Uploader:
    """The use case of UploadArtifacts."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        limits: Limits,
        *,
        clock: Clock = now_us,
        max_s: float = UPLOAD_MAX_S,
    ) -> None:
        """Make one for all calls; the sweep must know of `max_s`."""
        self._store = store
        self._blobs = blobs
        self._limits = limits
        self._clock = clock
        self._max_s = max_s
        self._removals: set[asyncio.Task[None]] = set()

    async def upload(self, tenant: str, parts: Parts) -> Uploaded:
        """Store the files of the stream and their event; return the event.

        The first request_id wins: a repeat gets its event, and its own bytes are removed. So are
        those of an upload that fails. Raises InvalidRequest for parts out of order or too slow,
        AgentNotFound, SessionNotFound, ChecksumMismatch, PayloadTooLarge, InvalidMetadata,
        StoreUnavailable, and what AppendDrafts raises.
        """
        start = await self._start(parts)
        session = SessionName(
            tenant=tenant,
            agent_key=start.agent_key,
            session_key=start.session_key,
            uid=start.session_uid or None,
        )
        ref = await self._store.read(lambda tx: tx.resolve_session(session))
        # The same session at the end, whatever has its key by then.
        session = replace(session, uid=ref.uid)
        received = _Received(tenant, ref.uid, self._blobs, self._limits, self._clock)
        try:
            async with asyncio.timeout(self._max_s):
                await received.take(parts)
            return await self._commit(session, start, received)
        except TimeoutError:
            raise InvalidRequest(f"The upload took longer than {self._max_s:g} s.") from None
        finally:
            await self._remove(tenant, received.blob_keys)

    async def _start(self, parts: Parts) -> service_pb2.UploadStart:
        first = await anext(parts, None)
        if first is None or isinstance(first, memoryview) or not first.HasField("start"):
            raise InvalidRequest.of_field("start", "must be the first part of an upload")
        return first.start

    async def _commit(
        self, session: SessionName, start: service_pb2.UploadStart, received: _Received
    ) -> Uploaded:
        artifacts = tuple(received.artifacts)
        payload = upload_payload(artifacts)
        if len(payload) > self._limits.event_max_bytes:
            raise PayloadTooLarge(
                f"The event of {len(artifacts)} files would have {len(payload):,} bytes; at most "
                f"{self._limits.event_max_bytes:,} are taken. Upload fewer files at a time."
            )
        draft = Draft(id=make_event_id(), type=EventType.ARTIFACT_UPLOAD, payload=payload)
        command = AppendDrafts(
            session=session,
            drafts=(draft,),
            scope=ClaimScope.UPLOAD_ARTIFACTS,
            claim=_claim(start, received),
            while_busy=True,
            upload=Upload(
                artifacts=artifacts,
                quota=artifact_quota(self._limits),
            ),
            max_events=self._limits.session_max_events,
        )
        appended = await self._submit(command, received)
        event_id = appended.events[0][0]
        uid, ids = appended.session_uid, [artifact.id for artifact in artifacts]

        def read(tx: ReadTx) -> tuple[EventRecord, dict[str, ArtifactRecord]]:
            event = tx.get_event(session.tenant, uid, event_id)
            return event, tx.get_artifacts(session.tenant, uid, ids)

        event, stored = await self._store.read(read)
        if event_id == draft.id:
            self._remove_spare(session.tenant, artifacts, stored)
        return Uploaded(event, session.agent_key, session.session_key)

    async def _submit(self, command: AppendDrafts, received: _Received) -> Appended:
        """Submit the command; leave in `received.blob_keys` what surely no row refers to."""
        keys, received.blob_keys = received.blob_keys, []
        try:
            hit("artifact.stored")
            appended = await self._store.submit(command)
            hit("artifact.recorded")
        except StoreUnavailable:
            # As when the call is cancelled: it may be committed. If not, the sweep finds the bytes.
            raise
        except DomainError:
            received.blob_keys = keys
            raise
        if appended.events[0][0] != command.drafts[0].id:
            received.blob_keys = keys
        return appended

    def _remove_spare(
        self,
        tenant: str,
        artifacts: tuple[ArtifactRecord, ...],
        stored: dict[str, ArtifactRecord],
    ) -> None:
        """Have bytes removed whose artifacts share others'; nobody waits for it, or could tell."""
        spare = [
            artifact.blob_key
            for artifact in artifacts
            if artifact.id in stored and stored[artifact.id].blob_key != artifact.blob_key
        ]
        if spare:
            self._removal(tenant, spare)

    async def _remove(self, tenant: str, keys: list[str]) -> None:
        if keys:
            await asyncio.shield(self._removal(tenant, keys))

    def _removal(self, tenant: str, keys: list[str]) -> asyncio.Task[None]:
        # A caller that goes away must not leave bytes behind: the removal is no part of its call.
        removal = asyncio.create_task(self._remove_quietly(tenant, tuple(keys)))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        return removal

    async def _remove_quietly(self, tenant: str, keys: tuple[str, ...]) -> None:
        try:
            await self._blobs.delete(tenant, keys)
        except StoreUnavailable:
            _log.warning("bytes of a failed upload stay until the next sweep", files=len(keys))


def artifact_quota(limits: Limits) -> ArtifactQuota:
    """Return what the files of a session together may amount to."""
    return ArtifactQuota(
        max_files=limits.session_artifacts_max_files, max_bytes=limits.session_artifacts_max_bytes
    )


def _claim(start: service_pb2.UploadStart, received: _Received) -> Claim | None:
    """Return the claim over all headers, in order; the bytes behind them don't count."""
    if not start.request_id:
        return None
    prints = b"".join(fingerprint(header) for header in received.headers)
    return Claim(start.request_id, hashlib.sha256(prints).digest())


@dataclass(slots=True)
class _Received:
    """What has arrived of one upload."""

    tenant: str
    session_uid: str
    blobs: Blobs
    limits: Limits
    clock: Clock
    headers: list[service_pb2.UploadHeader] = field(default_factory=list)
    artifacts: list[ArtifactRecord] = field(default_factory=list)
    blob_keys: list[str] = field(default_factory=list)
    size_bytes: int = 0

    async def take(self, parts: Parts) -> None:
        """Take headers and chunks until the stream ends."""
        header = await self._header_or_end(parts)
        if header is None:
            raise InvalidRequest.of_field("header", "an upload has at least one file")
        while header is not None:
            header = await self._file(header, parts)

    async def _header_or_end(self, parts: Parts) -> service_pb2.UploadHeader | None:
        part = await anext(parts, None)
        if part is None:
            return None
        return self._checked_header(part)

    def _checked_header(self, part: Part) -> service_pb2.UploadHeader:
        if isinstance(part, memoryview):
            raise InvalidRequest.of_field("chunk", "must follow the header of its file")
        if part.HasField("start"):
            raise InvalidRequest.of_field("start", "stands once, as the first part of an upload")
        if not part.HasField("header"):
            raise InvalidRequest.of_field("chunk", "must follow the header of its file")
        header, limits = part.header, self.limits
        self.headers.append(header)
        # Only what no session could ever hold; whether this one can is for the transaction to say.
        if len(self.headers) > limits.session_artifacts_max_files:
            raise QuotaExceeded(
                f"A session has at most {limits.session_artifacts_max_files:,} files.",
                quota=QuotaUse.of_session(
                    self.session_uid,
                    "session_artifacts_max_files",
                    limit=limits.session_artifacts_max_files,
                    used=len(self.headers) - 1,
                ),
            )
        if header.HasField("size_bytes"):
            self._check_size(header.size_bytes, header.filename)
        check_struct(header.metadata, "header.metadata", limits)
        return header

    def _check_size(self, size_bytes: int, filename: str) -> None:
        limits = self.limits
        if size_bytes > limits.artifact_max_bytes:
            raise PayloadTooLarge(
                f"{filename} is larger than {limits.artifact_max_bytes:,} bytes.",
                metadata={"artifact_max_bytes": str(limits.artifact_max_bytes)},
            )
        if self.size_bytes + size_bytes > limits.session_artifacts_max_bytes:
            raise QuotaExceeded(
                f"A session's files have at most {limits.session_artifacts_max_bytes:,} bytes.",
                quota=QuotaUse.of_session(
                    self.session_uid,
                    "session_artifacts_max_bytes",
                    limit=limits.session_artifacts_max_bytes,
                    used=self.size_bytes,
                ),
            )

    async def _file(
        self, header: service_pb2.UploadHeader, parts: Parts
    ) -> service_pb2.UploadHeader | None:
        """Store one file; return the next one's header, None at the end of the stream."""
        expected = bytes.fromhex(header.checksum_sha256) if header.checksum_sha256 else None
        head = b""
        following: service_pb2.UploadHeader | None = None
        async with self.blobs.write(self.tenant, expected) as writer:
            async for part in parts:
                chunk = _chunk(part)
                if chunk is None:
                    following = self._checked_header(part)
                    break
                size_bytes = writer.size_bytes + len(chunk)
                self._check_size(size_bytes, header.filename)
                self._check_against(header, size_bytes)
                if len(head) < HEAD_BYTES:
                    head += chunk[: HEAD_BYTES - len(head)]
                await writer.write(chunk)
            blob = await self._finish(header, writer)
        self.size_bytes += blob.size_bytes
        self.artifacts.append(self._record(header, blob, head))
        return following

    def _check_against(self, header: service_pb2.UploadHeader, size_bytes: int) -> None:
        # As soon as it is certain: not a byte more of a file that is refused in the end.
        if header.HasField("size_bytes") and size_bytes > header.size_bytes:
            raise ChecksumMismatch.of_field(
                "header.size_bytes",
                f"{header.filename} has more than the {header.size_bytes:,} bytes announced",
            )

    async def _finish(self, header: service_pb2.UploadHeader, writer: BlobWriter) -> Blob:
        if header.HasField("size_bytes") and writer.size_bytes != header.size_bytes:
            raise ChecksumMismatch.of_field(
                "header.size_bytes",
                f"{header.filename} has {writer.size_bytes:,} bytes, not the "
                f"{header.size_bytes:,} announced",
            )
        if header.checksum_sha256 and (await writer.digest()).hex() != header.checksum_sha256:
            raise ChecksumMismatch.of_field(
                "header.checksum_sha256", f"the bytes of {header.filename} have another SHA-256"
            )
        blob = await writer.finish()
        self.blob_keys.append(blob.key)
        return blob

    def _record(self, header: service_pb2.UploadHeader, blob: Blob, head: bytes) -> ArtifactRecord:
        now = self.clock()
        ttl_days = header.ttl_days if header.HasField("ttl_days") else None
        return ArtifactRecord(
            tenant=self.tenant,
            session_uid=self.session_uid,
            id=make_artifact_id(header.filename),
            filename=header.filename,
            mime_type=header.mime_type or sniff(head, header.filename),
            size_bytes=blob.size_bytes,
            sha256=blob.sha256,
            description=header.description,
            metadata=header.metadata.SerializeToString(deterministic=True),
            ttl_days=ttl_days,
            source=ArtifactSource.UPLOAD,
            blob_key=blob.key,
            created_at_us=now,
            updated_at_us=now,
            expire_at_us=ttl_days and now + ttl_days * _HOURS_PER_DAY * MICROSECONDS_PER_HOUR,
        )


def _chunk(part: Part) -> memoryview | None:
    """Return the bytes of a chunk, None for another part."""
    if isinstance(part, memoryview):
        return part
    return memoryview(part.chunk) if part.HasField("chunk") else None
