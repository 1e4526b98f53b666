"""What a gateway can be told, each with its unit and default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a gateway serves.

    Attributes:
        cors_origins: web origins that may call from browsers; none: CORS is off.
        body_max_bytes: the largest body but for uploads, which the server bounds.
        body_grace_s: a body may take this long, and then what it takes at `body_rate`.
        body_rate_bytes_s: the least average pace of a body after the grace.
        heartbeat_s: a stream without news says so this often.
        patience_s: how long a call that broke is taken up again before it fails.
        call_timeout_s: how long the server may take for a call that is no stream.
        connections_max: connections that are served at a time.
        uploads_max: uploads that are passed on at a time; more wait.
        drain_deadline_s: a stopping gateway is gone after this time.
    """

    cors_origins: tuple[str, ...] = field(default=())
    body_max_bytes: int = 8 * MIB
    body_grace_s: float = 30.0
    body_rate_bytes_s: int = KIB
    heartbeat_s: float = 15.0
    patience_s: float = 30.0
    call_timeout_s: float = 60.0
    connections_max: int = 4_096
    uploads_max: int = 64
    drain_deadline_s: float = 10.0
