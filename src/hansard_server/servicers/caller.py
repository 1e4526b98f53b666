"""Who makes the call that is being served."""

from __future__ import annotations

from contextvars import ContextVar

from hansard_server.domain.access import Caller

# Each call runs in a context of its own; the interceptor that lets callers in sets this there.
CALLER: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """Return who makes the call. A call that nobody was let in for has none: LookupError."""
    return CALLER.get()


def current_tenant() -> str:
    """Return the tenant of the call."""
    return CALLER.get().tenant
