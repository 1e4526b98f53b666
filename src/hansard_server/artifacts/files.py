"""The files of one session, as its agent's tools see them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from hansard.v1 import artifact_pb2
from hansard_server.artifacts.blobs import Blobs
from hansard_server.artifacts.messages import to_artifact
from hansard_server.artifacts.read import read_bytes, refuse_expired, without_expired
from hansard_server.domain.clock import Clock, now_us
from hansard_server.domain.records import ArtifactRecord
from hansard_server.repository.api import CreationScan, Store


class StoredFiles:
    """Implements agents.api.SessionFiles on the store."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
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

    async def _record(self, artifact_id: str) -> ArtifactRecord:
        record = await self._store.read(
            lambda tx: tx.get_artifact(self._tenant, self._session_uid, artifact_id)
        )
        return refuse_expired(record, self._clock())
