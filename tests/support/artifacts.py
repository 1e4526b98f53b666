"""Uploads for tests: their parts, and the rooms that take them, on a real disk."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hansard.v1 import artifact_service_pb2 as service_pb2
from hansard.v1 import event_pb2
from hansard_server.artifacts.blobs import Blobs
from hansard_server.artifacts.files import StoredFiles
from hansard_server.artifacts.read import Artifacts
from hansard_server.artifacts.upload import Uploader
from hansard_server.domain.limits import Limits
from hansard_server.repository.api import Store
from hansard_server.resources.paging import PageTokens
from tests.support.records import AGENT, SESSION, TENANT

Part = service_pb2.UploadArtifactsRequest


def start(request_id: str = "", **changes: Any) -> Part:
    made = service_pb2.UploadStart(
        agent_key=AGENT.key, session_key=SESSION.key, request_id=request_id, **changes
    )
    return Part(start=made)


def header(filename: str = "a.txt", **changes: Any) -> Part:
    return Part(header=service_pb2.UploadHeader(filename=filename, **changes))


def chunks(data: bytes, size: int = 100_000) -> list[Part]:
    return [Part(chunk=data[i : i + size]) for i in range(0, len(data), size)]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def stream(
    parts: Iterable[Part | memoryview | Exception],
) -> AsyncIterator[Part | memoryview]:
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part


@dataclass
class World:
    """Everything that artifacts need."""

    store: Store
    blobs: Blobs
    root: Path
    limits: Limits
    tokens: PageTokens

    async def upload(self, *parts: Part | Exception, **changes: Any) -> event_pb2.Event:
        uploader = Uploader(self.store, self.blobs, self.limits, **changes)
        made = await uploader.upload(TENANT, stream(parts))
        event = event_pb2.Event.FromString(made.event.payload)
        event.id, event.sequence = made.event.id, made.event.sequence
        return event

    async def upload_file(self, data: bytes, filename: str = "a.txt", **changes: Any) -> str:
        event = await self.upload(start(), header(filename, **changes), *chunks(data))
        return event.artifact_upload.artifacts[0].artifact_id

    @property
    def artifacts(self) -> Artifacts:
        return Artifacts(self.store, self.blobs, self.tokens)

    @property
    def files(self) -> StoredFiles:
        return StoredFiles(
            self.store,
            self.blobs,
            self.limits,
            tenant=TENANT,
            session_uid=SESSION.uid,
            agent_key=AGENT.key,
            session_key=SESSION.key,
        )

    def on_disk(self) -> list[Path]:
        """Return every file in the object store, whole or not."""
        return sorted(path for path in self.root.rglob("*") if path.is_file())


def named(request: type[Any], artifact_id: str = "", **changes: Any) -> Any:
    names = {"artifact_id": artifact_id} if artifact_id else {}
    return request(agent_key=AGENT.key, session_key=SESSION.key, **names, **changes)
