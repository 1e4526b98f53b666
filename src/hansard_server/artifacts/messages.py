"""Artifacts as messages of the contract."""

from __future__ import annotations

from google.protobuf import struct_pb2, timestamp_pb2

from hansard.v1 import artifact_pb2, event_pb2
from hansard_server.domain.clock import MICROSECONDS_PER_SECOND
from hansard_server.domain.records import ArtifactRecord

_NANOSECONDS_PER_MICROSECOND = 1_000


def to_artifact(record: ArtifactRecord, agent_key: str, session_key: str) -> artifact_pb2.Artifact:
    """Return the artifact as callers see it."""
    artifact = artifact_pb2.Artifact(
        agent_key=agent_key,
        session_key=session_key,
        artifact_id=record.id,
        filename=record.filename,
        mime_type=record.mime_type,
        size_bytes=record.size_bytes,
        checksum_sha256=record.sha256.hex(),
        description=record.description,
        metadata=struct_pb2.Struct.FromString(record.metadata),
        source=artifact_pb2.ArtifactSource.ValueType(record.source),
        created_at=_timestamp(record.created_at_us),
        updated_at=_timestamp(record.updated_at_us),
    )
    if record.ttl_days is not None:
        artifact.ttl_days = record.ttl_days
    return artifact


def upload_payload(records: tuple[ArtifactRecord, ...]) -> bytes:
    """Return a serialized Event that holds the artifact_upload of these files alone."""
    references = [
        artifact_pb2.ArtifactReference(
            artifact_id=record.id,
            filename=record.filename,
            mime_type=record.mime_type,
            size_bytes=record.size_bytes,
        )
        for record in records
    ]
    event = event_pb2.Event(artifact_upload=event_pb2.ArtifactUpload(artifacts=references))
    return event.SerializeToString(deterministic=True)


def _timestamp(time_us: int) -> timestamp_pb2.Timestamp:
    seconds, rest = divmod(time_us, MICROSECONDS_PER_SECOND)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=rest * _NANOSECONDS_PER_MICROSECOND)
