"""ArtifactService on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from hansard.v1 import artifact_pb2, artifact_service_pb2_grpc, event_pb2
from hansard.v1 import artifact_service_pb2 as service_pb2
from hansard_server.artifacts.read import Artifacts
from hansard_server.artifacts.upload import Parts, Uploader
from hansard_server.servicers.caller import current_tenant
from hansard_server.turns.payloads import encode_event

Context = grpc.aio.ServicerContext[Any, Any]


class ArtifactServicer(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """Converts, calls, converts."""

    def __init__(self, artifacts: Artifacts, uploader: Uploader) -> None:
        self._artifacts = artifacts
        self._uploader = uploader

    async def UploadArtifacts(self, request: Parts, _context: Context) -> event_pb2.Event:
        """See the contract; chunks may come without their messages."""
        made = await self._uploader.upload(current_tenant(), request)
        return event_pb2.Event.FromString(
            encode_event(made.event, made.agent_key, made.session_key)
        )

    async def GetArtifact(
        self, request: service_pb2.GetArtifactRequest, _context: Context
    ) -> artifact_pb2.Artifact:
        """See the contract."""
        return await self._artifacts.get(current_tenant(), request)

    async def ListArtifacts(
        self, request: service_pb2.ListArtifactsRequest, _context: Context
    ) -> service_pb2.ListArtifactsResponse:
        """See the contract."""
        page = await self._artifacts.list(current_tenant(), request)
        return service_pb2.ListArtifactsResponse(
            artifacts=page.items, next_page_token=page.next_token
        )

    async def DownloadArtifact(
        self, request: service_pb2.DownloadArtifactRequest, _context: Context
    ) -> AsyncIterator[service_pb2.DownloadArtifactResponse]:
        """See the contract."""
        async for part in self._artifacts.download(current_tenant(), request):
            yield part

    async def DeleteArtifact(
        self, request: service_pb2.DeleteArtifactRequest, _context: Context
    ) -> service_pb2.DeleteArtifactResponse:
        """See the contract."""
        await self._artifacts.delete(current_tenant(), request)
        return service_pb2.DeleteArtifactResponse()
