"""The probe: a write that leaves nothing, to see whether the database takes writes again."""

from __future__ import annotations

import secrets

from sqlalchemy import Connection, delete, insert

from hansard_server.repository.sql.tables import claims

_BYTES = 256 * 1024
"""More than what is free in pages that are there already."""
_TENANT = "-"


def probe_write(connection: Connection) -> None:
    """Write a large row and remove it, in the connection's transaction. Raises database errors."""
    key = {
        "tenant": _TENANT,
        "session_uid": secrets.token_hex(8),
        "scope": 0,
        "request_id": "probe",
    }
    connection.execute(insert(claims), {**key, "fingerprint": secrets.token_bytes(_BYTES)})
    connection.execute(
        delete(claims).where(*(claims.c[name] == value for name, value in key.items()))
    )
