"""Who calls."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

DEFAULT_TENANT = "default"
"""The tenant of everybody, as long as there is no authentication."""


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a call is made."""

    tenant: str


_DEFAULT = Caller(DEFAULT_TENANT)
# Each call runs in a context of its own; an interceptor that knows callers sets this there.
CALLER: ContextVar[Caller] = ContextVar("caller", default=_DEFAULT)


def current_tenant() -> str:
    """Return the tenant of the call that is being served."""
    return CALLER.get().tenant
