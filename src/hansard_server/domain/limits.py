"""Limits of the contract, each in one place: bytes unless the name says otherwise."""

from __future__ import annotations

from hansard_server.domain.values import dataclass

KIB = 1024
MIB = 1024 * KIB

PAGE_DEFAULT_ITEMS = 100
PAGE_MAX_ITEMS = 1_000
PAGE_MAX_BYTES = 3 * MIB
"""A page ends here, with at least one item, so that any client can receive it."""
SCAN_MAX_ROWS = 5_000
"""A list call examines at most so many rows."""
UPLOAD_CHUNK_MAX_BYTES = MIB
DOWNLOAD_CHUNK_BYTES = 256 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits that are settings of the server; the defaults are the contract's."""

    request_max_bytes: int = 4 * MIB
    metadata_max_bytes: int = 64 * KIB
    metadata_max_depth: int = 16
    input_max_bytes: int = MIB
    event_max_bytes: int = MIB
    artifact_max_bytes: int = 512 * MIB
    session_artifacts_max_bytes: int = 2 * 1024 * MIB
    session_artifacts_max_files: int = 1_000
    queue_max_inputs: int = 16
    session_max_events: int = 0
    """0: any number."""
    document_max_bytes: int = MIB
