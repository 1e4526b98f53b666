"""Chunks of uploads, taken out of their messages without a copy: of nothing else are there as many
bytes in a request.
"""

from __future__ import annotations

from hansard.v1.artifact_service_pb2 import UploadArtifactsRequest
from hansard_server.domain.limits import UPLOAD_CHUNK_MAX_BYTES

_TAG = UploadArtifactsRequest.CHUNK_FIELD_NUMBER << 3 | 2
_HEAD_MAX_BYTES = 4
"""The tag, and the length of a chunk of the largest size."""


def take_chunk(raw: bytes) -> memoryview | None:
    """Return the chunk of an UploadArtifactsRequest that is valid and nothing but a chunk.

    None for all others, and for those that say so in more bytes than needed: they are to be parsed.
    """
    if not raw or raw[0] != _TAG:
        return None
    size = 0
    for place in range(1, min(len(raw), _HEAD_MAX_BYTES)):
        size |= (raw[place] & 0x7F) << 7 * (place - 1)
        if raw[place] < 0x80:  # noqa: PLR2004 - the last byte of a varint has no highest bit
            start = place + 1
            whole = len(raw) - start == size <= UPLOAD_CHUNK_MAX_BYTES
            return memoryview(raw)[start:] if whole else None
    return None
