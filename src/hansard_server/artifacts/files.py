"""The files of one session, as its agent's tools see them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from hansard.v1 import artifact_pb2
from hansard_server.artifacts.blobs import Blobs
from hansard_server.artifacts.messages import to_artifact
from hansard_server.artifacts.mime import HEAD_BYTES, sniff
from hansard_server.artifacts.read import read_bytes, refuse_expired, without_expired
from hansard_server.domain.clock import Clock, now_us
from hansard_server.domain.errors import PayloadTooLarge, QuotaExceeded, QuotaUse
from hansard_server.domain.keys import make_artifact_id
from hansard_server.domain.limits import Limits
from hansard_server.domain.records import ArtifactRecord, ArtifactSource
from hansard_server.domain.values import dataclass
from hansard_server.repository.api import CreationScan, Store


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file whose bytes are stored, and which is an artifact as soon as its row is written."""

    artifact: artifact_pb2.Artifact
    record: ArtifactRecord


class StoredFiles:
    """The files that agents.api.SessionFiles speaks of, on the store."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        limits: Limits,
        *,
        tenant: str,
        session_uid: str,
        agent_key: str,
        session_key: str,
        clock: Clock = now_us,
    ) -> None:
        """Make one for a session."""
        self._store = store
        self._blobs = blobs
        self._limits = limits
        self._tenant = tenant
        self._session_uid = session_uid
        self._keys = (agent_key, session_key)
        self._clock = clock

    async def list_files(self, limit: int) -> Sequence[artifact_pb2.Artifact]:
        """Return the newest artifacts, at most `limit`, the newest first."""
        scan = CreationScan(limit=limit, descending=True)
        records = await self._store.read(
            lambda tx: tx.scan_artifacts(self._tenant, self._session_uid, scan)
        )
        return [to_artifact(r, *self._keys) for r in without_expired(records, self._clock())]

    async def get_file(self, artifact_id: str) -> artifact_pb2.Artifact:
        """Return the artifact. Raises ArtifactNotFound."""
        return to_artifact(await self._record(artifact_id), *self._keys)

    async def read_file(
        self, artifact_id: str, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes]:
        """Yield the bytes from `offset` on, 256 KiB a chunk. Raises ArtifactNotFound."""
        record = await self._record(artifact_id)
        rest = max(0, record.size_bytes - offset)
        count = rest if length is None else min(rest, length)
        async with aclosing(read_bytes(self._store, self._blobs, record, offset, count)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def make_file(
        self,
        filename: str,
        chunks: AsyncIterator[bytes],
        *,
        mime_type: str = "",
        description: str = "",
    ) -> NewFile:
        """Store the bytes, and return what will be an artifact when its row is written.

        Raises PayloadTooLarge, QuotaExceeded, StoreUnavailable.
        """
        limits = self._limits
        totals = await self._store.read(
            lambda tx: tx.total_artifacts(self._tenant, self._session_uid)
        )
        if totals.files >= limits.session_artifacts_max_files:
            raise QuotaExceeded(
                f"The session has {totals.files:,} files, as many as it may have.",
                quota=QuotaUse.of_session(
                    self._session_uid,
                    "session_artifacts_max_files",
                    limit=limits.session_artifacts_max_files,
                    used=totals.files,
                ),
            )
        head = b""
        async with self._blobs.write(self._tenant, None) as writer:
            async for chunk in chunks:
                size_bytes = writer.size_bytes + len(chunk)
                if size_bytes > limits.artifact_max_bytes:
                    raise PayloadTooLarge(
                        f"{filename} is larger than {limits.artifact_max_bytes:,} bytes."
                    )
                if totals.size_bytes + size_bytes > limits.session_artifacts_max_bytes:
                    raise QuotaExceeded(
                        f"The session's files have at most "
                        f"{limits.session_artifacts_max_bytes:,} bytes.",
                        quota=QuotaUse.of_session(
                            self._session_uid,
                            "session_artifacts_max_bytes",
                            limit=limits.session_artifacts_max_bytes,
                            used=totals.size_bytes,
                        ),
                    )
                head += chunk[: HEAD_BYTES - len(head)]
                await writer.write(chunk)
            blob = await writer.finish()
        now = self._clock()
        record = ArtifactRecord(
            tenant=self._tenant,
            session_uid=self._session_uid,
            id=make_artifact_id(filename),
            filename=filename,
            mime_type=mime_type or sniff(head, filename),
            size_bytes=blob.size_bytes,
            sha256=blob.sha256,
            description=description,
            metadata=b"",
            ttl_days=None,
            source=ArtifactSource.TOOL,
            blob_key=blob.key,
            created_at_us=now,
            updated_at_us=now,
        )
        return NewFile(to_artifact(record, *self._keys), record)

    async def _record(self, artifact_id: str) -> ArtifactRecord:
        record = await self._store.read(
            lambda tx: tx.get_artifact(self._tenant, self._session_uid, artifact_id)
        )
        return refuse_expired(record, self._clock())
