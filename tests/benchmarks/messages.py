"""What clients of the benchmarks send. Imports no server: clients start soon."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from hansard.v1 import artifact_service_pb2, event_pb2, event_service_pb2

AGENT_KEY = "support"
CLOCK_KEY = "clock"
"""An agent whose turn tells the time again and again."""
EVENT_BYTES = 500
PAGE = 100
CHUNK_BYTES = 256 * 1024
FILE_BYTES = 16 * 1024 * 1024
FILE_BYTE = b"\xa5"

UploadRequest = artifact_service_pb2.UploadArtifactsRequest


def append(session_key: str, request_id: str) -> event_service_pb2.AppendEventsRequest:
    """Return the request that appends an event of 500 bytes."""
    answer = event_pb2.AgentOutput(content="x" * EVENT_BYTES)
    return event_service_pb2.AppendEventsRequest(
        agent_key=AGENT_KEY,
        session_key=session_key,
        request_id=request_id,
        events=[event_pb2.EventDraft(agent_output=answer)],
    )


def send(
    session_key: str, request_id: str, agent_key: str = AGENT_KEY
) -> event_service_pb2.SendEventRequest:
    """Return the request that sends an input."""
    part = event_pb2.MessagePart(text=event_pb2.TextPart(content="Where is my parcel?"))
    return event_service_pb2.SendEventRequest(
        agent_key=agent_key,
        session_key=session_key,
        request_id=request_id,
        input_message=event_pb2.InputMessage(messages=[part]),
    )


def list_events(session_key: str) -> event_service_pb2.ListEventsRequest:
    """Return the request for a session's first page."""
    return event_service_pb2.ListEventsRequest(
        agent_key=AGENT_KEY, session_key=session_key, page_size=PAGE
    )


def download(session_key: str, artifact_id: str) -> artifact_service_pb2.DownloadArtifactRequest:
    """Return the request for a file."""
    return artifact_service_pb2.DownloadArtifactRequest(
        agent_key=AGENT_KEY, session_key=session_key, artifact_id=artifact_id
    )


class Upload:
    """The requests of an upload of one file, made once."""

    def __init__(self) -> None:
        digest = hashlib.sha256(FILE_BYTE * FILE_BYTES).hexdigest()
        self._header = UploadRequest(
            header=artifact_service_pb2.UploadHeader(
                filename="file.bin",
                mime_type="application/octet-stream",
                size_bytes=FILE_BYTES,
                checksum_sha256=digest,
            )
        ).SerializeToString()
        self._chunk = UploadRequest(chunk=FILE_BYTE * CHUNK_BYTES).SerializeToString()

    def messages(self, session_key: str, request_id: str) -> Iterator[bytes]:
        """Yield one upload's messages."""
        start = artifact_service_pb2.UploadStart(
            agent_key=AGENT_KEY, session_key=session_key, request_id=request_id
        )
        yield UploadRequest(start=start).SerializeToString()
        yield self._header
        for _ in range(FILE_BYTES // CHUNK_BYTES):
            yield self._chunk
